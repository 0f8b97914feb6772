// What comes before a kernel's text: Metal's library, MLX's preamble (its header, from the installed MLX), and the
// words of the language that are no names.
#define MLX_METAL_JIT
#include "mlx/backend/metal/kernels/utils.h"

#define kernel __kernel
#define vertex __kernel
#define fragment __kernel
