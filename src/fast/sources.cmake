# The kernels' text and plans as a static library of their own, free of MLX: natten_fast_text.
set(NATTEN_FAST_DIR ${CMAKE_CURRENT_LIST_DIR})
set(NATTEN_FAST_GENERATED ${CMAKE_BINARY_DIR}/generated)
file(GLOB NATTEN_FAST_BODIES CONFIGURE_DEPENDS ${NATTEN_FAST_DIR}/bodies/*.h)
add_custom_command(
  OUTPUT ${NATTEN_FAST_GENERATED}/fast/embedded.h
  COMMAND ${CMAKE_COMMAND} -DOUTPUT=${NATTEN_FAST_GENERATED}/fast/embedded.h -DDIRECTORY=${NATTEN_FAST_DIR}/.. -P
          ${NATTEN_FAST_DIR}/embed.cmake
  DEPENDS ${NATTEN_FAST_BODIES} ${NATTEN_FAST_DIR}/../definition/window.h ${NATTEN_FAST_DIR}/embed.cmake
  VERBATIM)
add_library(natten_fast_text STATIC ${NATTEN_FAST_DIR}/kernel_source.cpp ${NATTEN_FAST_DIR}/kernels.cpp
                                    ${NATTEN_FAST_DIR}/plan.cpp ${NATTEN_FAST_DIR}/plan_matrix.cpp ${NATTEN_FAST_DIR}/plan_simt.cpp ${NATTEN_FAST_DIR}/plan_warpgroup.cpp ${NATTEN_FAST_DIR}/cost.cpp ${NATTEN_FAST_DIR}/spans.cpp
                                    ${NATTEN_FAST_DIR}/compiler.cpp ${NATTEN_FAST_DIR}/cuda_program.cpp ${NATTEN_FAST_DIR}/disk_cache.cpp ${NATTEN_FAST_DIR}/nvrtc.cpp
                                    ${NATTEN_FAST_GENERATED}/fast/embedded.h)
target_include_directories(
  natten_fast_text
  PUBLIC $<BUILD_INTERFACE:${NATTEN_FAST_DIR}/..>
  PRIVATE ${NATTEN_FAST_GENERATED} ${NATTEN_FAST_DIR}/../../include)
target_link_libraries(natten_fast_text PUBLIC ${CMAKE_DL_LIBS})
target_compile_features(natten_fast_text PUBLIC cxx_std_20)
set_target_properties(natten_fast_text PROPERTIES POSITION_INDEPENDENT_CODE ON)
target_compile_options(natten_fast_text PRIVATE -Wall -Wextra)
