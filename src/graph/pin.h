// Identity nodes that fix what lazy evaluation leaves open: the order of evaluation and the shapes of a trace.
#pragma once

#include <vector>

#include "mlx/array.h"
#include "mlx/stream.h"

namespace natten {

namespace mx = mlx::core;

/// `values` unchanged (buffers are shared), evaluated only after `after`.
/// - Backward the order is reversed: gradients reach `after` only once the gradients of `values` are there. This is
///   what `mx::depends` lacks (its backward is unordered, and it has no vmap).
/// - A trace that is replayed with other shapes (compile with shapeless=True) throws std::invalid_argument, because
///   index tables in the trace belong to the shapes that were traced.
/// In a graph for export these are nodes of mx::depends, and a trace for other shapes throws at once.
std::vector<mx::array> pin(const std::vector<mx::array>& values, const std::vector<mx::array>& after, mx::Stream s);

/// For vmap rules of nodes with several outputs: `inputs` with the mapped axis first, those that are not mapped
/// (axis -1) repeated along it. A node whose outputs are mapped in part would not do: some of MLX's primitives fail on
/// an input that is not mapped.
std::vector<mx::array> mapped_first(const std::vector<mx::array>& inputs, const std::vector<int>& axes, mx::Stream s);

}  // namespace natten
