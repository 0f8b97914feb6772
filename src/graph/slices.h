// Slices whose start is known when they run, with derivatives that stay right when they are mapped.
#pragma once

#include <vector>

#include "mlx/array.h"
#include "mlx/stream.h"

namespace natten {

namespace mx = mlx::core;

/// x from `start` (int32, one for each of `axes`) on, `lengths` of these axes.
mx::array slice_from(const mx::array& x, const mx::array& start, const std::vector<int>& axes, const mx::Shape& lengths,
                     mx::Stream s);

/// x with `update` from `start` on; in place where nobody else has x. MLX's own leaves an update that is not mapped
/// out of all mapped examples of x but the first one, the zeros in the gradient for x among them, and refuses mapped
/// starts (MLX 0.32).
mx::array slice_updated(const mx::array& x, const mx::array& update, const mx::array& start,
                        const std::vector<int>& axes, mx::Stream s);

}  // namespace natten
