# The library: NattenMLX::natten, also for other CMake projects through find_package(NattenMLX).
include(src/fast/sources.cmake)
add_library(natten STATIC)
add_library(NattenMLX::natten ALIAS natten)
target_sources(
  natten
  PRIVATE src/api/attention.cpp
          src/api/caches.cpp
          src/api/capabilities.cpp
          src/api/dense.cpp
          src/api/mask.cpp
          src/api/span.cpp
          src/api/registry.cpp
          src/api/warmup.cpp
          src/distributed/add_rows.cpp
          src/distributed/agreement.cpp
          src/distributed/attention.cpp
          src/distributed/collectives.cpp
          src/distributed/gathers.cpp
          src/distributed/halo.cpp
          src/distributed/order.cpp
          src/distributed/ring_collectives.cpp
          src/distributed/ring_sockets.cpp
          src/distributed/slabs.cpp
          src/distributed/split.cpp
          src/distributed/transport.cpp
          src/fast/launch.cpp
          src/fast/tier.cpp
          src/graph/decorated.cpp
          src/graph/dtype.cpp
          src/graph/exportable.cpp
          src/graph/numerics.cpp
          src/graph/pin.cpp
          src/graph/slices.cpp
          src/graph/trace.cpp
          src/native/decoding.cpp
          src/native/primitives.cpp
          src/native/result_memory.cpp
          src/native/tier.cpp
          src/ops/canonical.cpp
          src/ops/differentiable.cpp
          src/ops/fold.cpp
          src/ops/tier.cpp
          src/ops/validate.cpp
          src/ops/validate_axes.cpp
          src/pure/attention.cpp
          src/pure/blocks.cpp
          src/pure/mask.cpp
          src/pure/padding.cpp
          src/pure/windows.cpp)
target_include_directories(
  natten
  PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>
  PRIVATE src)
target_compile_features(natten PUBLIC cxx_std_20)
target_compile_options(natten PRIVATE -Wall -Wextra)
# MLX's headers take most of the time of a file: files are compiled eight at a time.
set_target_properties(natten PROPERTIES UNITY_BUILD ${NATTEN_UNITY} UNITY_BUILD_BATCH_SIZE 8)
target_link_libraries(natten PUBLIC mlx PRIVATE natten_cpu natten_fast_text)
if(NATTEN_BUILD_EMULATOR)
  add_subdirectory(tests/metal_host)
  target_compile_definitions(natten PRIVATE NATTEN_BUILD_EMULATOR)
  target_link_libraries(natten PRIVATE $<BUILD_INTERFACE:natten_metal_host>)
endif()

if(NATTEN_HIGHWAY_IS_FETCHED)
  message(STATUS "There is no Highway on this system that an installed library could link: only the extension can be installed")
elseif(NOT SKBUILD)
  # The CPU kernels travel inside the installed archive's package, as a target that users do not name.
  include(CMakePackageConfigHelpers)
  install(TARGETS natten natten_cpu natten_fast_text EXPORT NattenMLXTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(DIRECTORY include/natten DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
  install(
    EXPORT NattenMLXTargets
    NAMESPACE NattenMLX::
    DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/NattenMLX)
  configure_package_config_file(cmake/NattenMLXConfig.cmake.in ${PROJECT_BINARY_DIR}/NattenMLXConfig.cmake
                                INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/NattenMLX)
  write_basic_package_version_file(${PROJECT_BINARY_DIR}/NattenMLXConfigVersion.cmake COMPATIBILITY SameMinorVersion)
  install(FILES ${PROJECT_BINARY_DIR}/NattenMLXConfig.cmake ${PROJECT_BINARY_DIR}/NattenMLXConfigVersion.cmake
          DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/NattenMLX)
endif()
