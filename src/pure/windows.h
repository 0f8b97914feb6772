// Index tables of the pure tier: window.h evaluated on MLX arrays, so that lengths may differ per sample and need not
// be known while a graph is built.
#pragma once

#include <optional>

#include "definition/problem.h"
#include "mlx/array.h"
#include "mlx/stream.h"

namespace natten {

namespace mx = mlx::core;

/// The windows of queries [first, last) in row-major order, slots row-major.
struct BlockWindows {
  mx::array rows;                  ///< int32 [B, Q, slots]: row of the key among batch x tokens
  std::optional<mx::array> valid;  ///< bool [S, Q, slots], only where a slot can be empty (causal)
  std::optional<mx::array> bias;   ///< int32 [S, Q, slots]: row of the flattened rpb axes, only with rpb
};

/// `lengths` int32 [B, 3], legal for every sample.
BlockWindows block_windows(const Problem& problem, const std::optional<mx::array>& lengths, std::int64_t first,
                           std::int64_t last, mx::Stream s);

}  // namespace natten
