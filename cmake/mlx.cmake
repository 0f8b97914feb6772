# Finds the MLX that is installed for Python. MLX's ABI changes with every patch, so the version is exact.
set(NATTEN_MLX_REQUIRED 0.32.4)
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
if(NOT MLX_ROOT)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -m mlx --cmake-dir
    OUTPUT_VARIABLE MLX_ROOT
    OUTPUT_STRIP_TRAILING_WHITESPACE
    RESULT_VARIABLE NATTEN_MLX_MISSING
    ERROR_QUIET)
  if(NATTEN_MLX_MISSING)
    message(FATAL_ERROR "MLX is not installed for ${Python_EXECUTABLE}: "
                        "${Python_EXECUTABLE} -m pip install 'mlx[cpu]==${NATTEN_MLX_REQUIRED}'")
  endif()
endif()
find_package(MLX ${NATTEN_MLX_REQUIRED} EXACT CONFIG REQUIRED)
