// Gathers and sums over all ranks, on our own connections where the group is MLX's ring (ring_sockets.h says why),
// otherwise MLX's.
#pragma once

#include "mlx/array.h"
#include "mlx/distributed/distributed.h"
#include "mlx/stream.h"

namespace natten::distributed {

namespace mx = mlx::core;

/// [rows, ...] of every rank below each other. On the ring without derivatives.
mx::array all_gather(const mx::array& x, const mx::distributed::Group& group, mx::Stream s);

/// The same bits on every rank. Its gradient is the cotangent, as of MLX's.
mx::array all_sum(const mx::array& x, const mx::distributed::Group& group, mx::Stream s);

}  // namespace natten::distributed
