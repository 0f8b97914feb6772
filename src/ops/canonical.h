// Ranks 1 and 2 as rank 3 with leading axes of length 1, and back. Views only.
#pragma once

#include "mlx/array.h"
#include "mlx/stream.h"

namespace natten {

namespace mx = mlx::core;

/// [B, spatial..., rest] -> [B, 1..., spatial..., rest]
mx::array with_three_axes(const mx::array& x, int rank, mx::Stream s);
/// The inverse.
mx::array with_rank_axes(const mx::array& x, int rank, mx::Stream s);
/// [Hq, 2K-1, ...] of any floating type -> [Hq, 2K0-1, 2K1-1, 2K2-1] in `type`.
mx::array canonical_rpb(const mx::array& rpb, int rank, mx::Dtype type, mx::Stream s);
/// [B] or [B, rank], int32 or int64 -> int32 [B, 3]; values beyond 32 bits stay illegal.
mx::array canonical_lengths(const mx::array& lengths, int rank, mx::Stream s);

}  // namespace natten
