# What benchmarks measure the CPU kernels against: natten_probe, no part of the library.
if(NOT TARGET natten_probe)
  add_library(natten_probe STATIC ${CMAKE_CURRENT_LIST_DIR}/probe.cpp)
  target_link_libraries(natten_probe PUBLIC natten_cpu)
  target_compile_options(natten_probe PRIVATE -Wall -Wextra)
  set_target_properties(natten_probe PROPERTIES POSITION_INDEPENDENT_CODE ON)
endif()
