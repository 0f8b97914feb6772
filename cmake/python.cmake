# The extension natten_mlx._ext. It shares mx.array with mlx.core, so nanobind's version and domain are MLX's.
# Installed, it uses the nanobind of the package nanobind-backend and the stable ABI from Python 3.10 on (split mode): one
# file for every Python. In the source tree it has its own, for sanitizers and debuggers.
if(SKBUILD)
  set(NATTEN_NANOBIND BACKEND_MODULE nanobind_backend)
else()
  set(NATTEN_NANOBIND NB_STATIC)
endif()
if(NOT nanobind_ROOT)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -m nanobind --cmake_dir
    OUTPUT_VARIABLE nanobind_ROOT
    OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
endif()
find_package(nanobind 3.1 CONFIG REQUIRED)
nanobind_add_module(
  _ext
  ${NATTEN_NANOBIND}
  NB_DOMAIN
  mlx
  python/bindings/arguments.cpp
  python/bindings/distributed.cpp
  python/bindings/external_tier.cpp
  python/bindings/module.cpp
  python/bindings/nn.cpp
  python/bindings/probe.cpp
  python/bindings/window.cpp)
if(NOT SKBUILD)  # nanobind is written to be compiled as one file: a third of the time of its fifteen
  set_target_properties(nanobind-static PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 0)
endif()
target_include_directories(_ext PRIVATE src)
include(src/probe/sources.cmake)
target_link_libraries(_ext PRIVATE natten natten_probe)
target_compile_options(_ext PRIVATE -Wall -Wextra)
set_target_properties(_ext PROPERTIES UNITY_BUILD ${NATTEN_UNITY} UNITY_BUILD_BATCH_SIZE 4)
if(APPLE)
  set(NATTEN_ORIGIN "@loader_path")
else()
  set(NATTEN_ORIGIN "$ORIGIN")
endif()
if(SKBUILD)
  # libmlx comes from the mlx package next to ours; the build tree's path must not get into a wheel.
  set_target_properties(_ext PROPERTIES BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH "${NATTEN_ORIGIN}/../mlx/lib")
  install(TARGETS _ext LIBRARY DESTINATION natten_mlx)
else()
  # Importable from the source tree: PYTHONPATH=python.
  set(NATTEN_EXTENSION_FOLDER ${PROJECT_SOURCE_DIR}/python/natten_mlx CACHE PATH "Where the extension is put")
  set_target_properties(_ext PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${NATTEN_EXTENSION_FOLDER})
endif()
