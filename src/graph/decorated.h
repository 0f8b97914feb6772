// One of MLX's primitives with other derivatives. What mx::custom_function lacks: shapes in a trace for any shape, jvp
// that does not ask the inner primitive, and derivatives that stay when a node is mapped.
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "mlx/array.h"
#include "mlx/stream.h"

namespace natten {

namespace mx = mlx::core;

struct Rules {
  using Arrays = std::vector<mx::array>;

  const char* name;
  std::size_t argument;  ///< the one input with derivatives, in which the node is linear
  /// Its cotangent, and the node's tangent.
  std::function<mx::array(const Arrays& inputs, const mx::array& cotangent, mx::Stream)> vjp;
  std::function<mx::array(const Arrays& inputs, const mx::array& tangent, mx::Stream)> jvp;
  /// The node over mapped inputs, and its axis; the inner primitive's where it is not set.
  std::function<std::pair<mx::array, int>(const Arrays& inputs, const std::vector<int>& axes, mx::Stream)> vmap = {};
};

/// `node` is the one output of its primitive.
mx::array decorated(const mx::array& node, Rules rules, mx::Stream s);

}  // namespace natten
