// The arrays that tiers get: ranks 1 and 2 as rank 3 with leading axes of length 1, and back; views only.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "definition/problem.h"
#include "mlx/array.h"
#include "mlx/stream.h"

namespace natten {

namespace mx = mlx::core;

/// [B, spatial..., rest] -> [B, 1..., spatial..., rest]
mx::array with_three_axes(const mx::array& x, int rank, mx::Stream s);
/// The inverse.
mx::array with_rank_axes(const mx::array& x, int rank, mx::Stream s);
/// [B, O0, O1, O2, trailing...], of the computed queries.
mx::Shape query_grid(const Problem& p, std::initializer_list<std::int64_t> trailing);
/// The inputs of a forward with its keys, which may be in pieces, in one array.
std::vector<mx::array> with_whole_keys(const Problem& p, const std::vector<mx::array>& inputs, mx::Stream s);
/// [Hq, 2K-1, ...] of any floating type -> [Hq, 2K0-1, 2K1-1, 2K2-1] in `type`.
mx::array canonical_rpb(const mx::array& rpb, int rank, mx::Dtype type, mx::Stream s);
/// [B] or [B, rank], int32 or int64 -> int32 [B, 3]; values beyond 32 bits stay illegal.
mx::array canonical_lengths(const mx::array& lengths, int rank, mx::Stream s);

}  // namespace natten
