// Where MLX's own operations are not exact enough for a reference.
#pragma once

#include "mlx/array.h"
#include "mlx/stream.h"

namespace natten {

namespace mx = mlx::core;

/// x where `mask`, else `fill`. Unlike mx::where, whose gradient multiplies by the mask, no NaN or infinity gets
/// through it in a gradient of any order.
mx::array select(const mx::array& mask, const mx::array& x, double fill, mx::Stream s);

/// mx::exp and mx::logsumexp over the last axis (kept) have float32 accuracy on the CPU whatever the type (MLX 0.32);
/// these are exact for float64.
mx::array exponential(const mx::array& x, mx::Stream s);
mx::array log_sum_exp(const mx::array& x, mx::Stream s);

}  // namespace natten
