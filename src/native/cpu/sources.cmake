# The CPU kernels as a static library of their own, free of MLX: natten_cpu. Needs Highway.
set(NATTEN_CPU_DIR ${CMAKE_CURRENT_LIST_DIR})
add_library(
  natten_cpu STATIC
  ${NATTEN_CPU_DIR}/extra_tokens.cpp
  ${NATTEN_CPU_DIR}/axis_plan.cpp
  ${NATTEN_CPU_DIR}/block_cache.cpp
  ${NATTEN_CPU_DIR}/control_group.cpp
  ${NATTEN_CPU_DIR}/dense_copy.cpp
  ${NATTEN_CPU_DIR}/forward.cpp
  ${NATTEN_CPU_DIR}/forward_plan.cpp
  ${NATTEN_CPU_DIR}/matrix_plan.cpp
  ${NATTEN_CPU_DIR}/matrix_unit.cpp
  ${NATTEN_CPU_DIR}/scratch.cpp
  ${NATTEN_CPU_DIR}/sweeps.cpp
  ${NATTEN_CPU_DIR}/target.cpp
  ${NATTEN_CPU_DIR}/thread_pool.cpp
  ${NATTEN_CPU_DIR}/tile_tasks.cpp)

# Ubuntu 22.04, on which wheels are built, has an older Highway than we know to work: it is fetched there.
if(NOT TARGET hwy::hwy)
  find_package(hwy 1.0.3 QUIET CONFIG)
endif()
if(NOT TARGET hwy::hwy)
  find_package(PkgConfig)
  if(PkgConfig_FOUND)
    pkg_check_modules(HWY QUIET IMPORTED_TARGET libhwy>=1.0.3)
  endif()
  if(HWY_FOUND)
    add_library(hwy::hwy ALIAS PkgConfig::HWY)
  else()
    include(FetchContent)
    FetchContent_Declare(
      highway
      GIT_REPOSITORY https://github.com/google/highway.git
      GIT_TAG 1.0.3
      GIT_SHALLOW TRUE)
    # In the cache, where Highway would else turn them on: its tests bring a GoogleTest that CMake 4 refuses.
    foreach(part TESTS EXAMPLES CONTRIB)
      set(HWY_ENABLE_${part} OFF CACHE INTERNAL "")
    endforeach()
    set(BUILD_SHARED_LIBS OFF)
    FetchContent_MakeAvailable(highway)
    add_library(hwy::hwy ALIAS hwy)
    set(NATTEN_HIGHWAY_IS_FETCHED ON)
  endif()
endif()
find_package(Threads REQUIRED)

target_include_directories(natten_cpu PUBLIC $<BUILD_INTERFACE:${NATTEN_CPU_DIR}/../..>)
target_compile_features(natten_cpu PUBLIC cxx_std_20)
target_link_libraries(natten_cpu PUBLIC hwy::hwy Threads::Threads)
set_target_properties(natten_cpu PROPERTIES POSITION_INDEPENDENT_CODE ON)
target_compile_options(natten_cpu PRIVATE -Wall -Wextra $<$<CONFIG:Release,RelWithDebInfo>:-O3>)
# These hold all kernels of a direction. GCC bounds how much inlining may add to a file: loops over rows would become
# calls (1.02 to 1.03 times as long for short windows).
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  set_source_files_properties(${NATTEN_CPU_DIR}/forward.cpp ${NATTEN_CPU_DIR}/sweeps.cpp
                              PROPERTIES COMPILE_OPTIONS "--param=inline-unit-growth=300")
endif()
# Between the scalar baseline and AVX2 lie machines of before 2013: not worth their compile time.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  target_compile_definitions(natten_cpu PUBLIC "HWY_DISABLED_TARGETS=(HWY_SSSE3|HWY_SSE4)")
endif()
# Tiles are arrays of vectors in registers, which the vectors of SVE, having no size, cannot be. NEON runs instead.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  target_compile_definitions(natten_cpu PUBLIC "HWY_DISABLED_TARGETS=(HWY_SVE|HWY_SVE2|HWY_SVE_256|HWY_SVE2_128)")
endif()
