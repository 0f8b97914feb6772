// Where MLX's own operations are not exact enough for a reference.
#pragma once

#include "mlx/array.h"
#include "mlx/stream.h"

namespace natten {

namespace mx = mlx::core;

/// x where `mask`, which broadcasts to it, else `fill`. Unlike mx::where, whose gradient multiplies by the mask, no NaN
/// or infinity gets through it in a gradient of any order.
mx::array select(const mx::array& mask, const mx::array& x, double fill, mx::Stream s);

/// mx::take along axis 0, whose gradient has a jvp too (MLX's scatter has none).
mx::array take_rows(const mx::array& x, const mx::array& rows, mx::Stream s);

/// mx::exp has float32 accuracy on the CPU whatever the type (MLX 0.32); this is exact for float64.
mx::array exponential(const mx::array& x, mx::Stream s);

struct Softmax {
  mx::array weights;  ///< like the logits
  mx::array lse;      ///< [..., 1]: natural log of the sum of exponentials
};

/// Over the last axis. Where every logit is -inf: weights 0, lse -inf, gradients 0.
Softmax softmax(const mx::array& logits, mx::Stream s);

}  // namespace natten
