// What holds of a graph that a transformation traces.
#pragma once

#include <cstddef>
#include <vector>

#include "mlx/array.h"

namespace natten {

namespace mx = mlx::core;

/// Whether evaluating `a` needs only data that exists: not so below a placeholder of compile or vmap.
bool is_concrete(const mx::array& a);

/// For a primitive's is_equivalent. Where compile merges twins that have several outputs, some of their inputs forget
/// who uses them, and fusing the operations of such an input throws (MLX 0.32): they are left apart.
constexpr bool may_merge(std::size_t outputs) {
  return outputs == 1;
}

/// For a primitive's output_shapes: refuses the replay of a trace (compile with shapeless=True) with other shapes than
/// those it was traced with, to which its index tables and its problem belong.
void check_replay(const std::vector<mx::Shape>& traced, const std::vector<mx::array>& inputs);

}  // namespace natten
