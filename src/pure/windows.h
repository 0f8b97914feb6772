// Index tables of the pure tier: window.h evaluated on MLX arrays, so that lengths may differ per sample and need not
// be known while a graph is built.
#pragma once

#include <cstdint>
#include <optional>

#include "definition/problem.h"
#include "mlx/array.h"
#include "mlx/stream.h"

namespace natten {

namespace mx = mlx::core;

/// Which slots of a causal window to have: all that the kernel has, or the last ones, as many as a window of the call
/// can fill.
enum class Slots : std::uint8_t { all, held };
std::int64_t slot_count(const Problem& problem, int axis, Slots slots);

/// The windows of queries [first, last) in row-major order, slots row-major.
struct BlockWindows {
  mx::array rows;  ///< int32 [B, Q, slots]: row of the key among batch x key rows; some row if not valid
  std::optional<mx::array> valid;  ///< bool [S, Q, slots], only where a slot can be empty
  std::optional<mx::array> bias;   ///< int32 [S, Q, slots]: row of the flattened rpb axes, only with rpb
};

/// Whether there is BlockWindows::valid.
bool has_empty_slots(const Problem& problem);

/// `lengths` int32 [B, 3], legal for every sample.
BlockWindows block_windows(const Problem& problem, const std::optional<mx::array>& lengths, Slots slots,
                           std::int64_t first, std::int64_t last, mx::Stream s);

}  // namespace natten
