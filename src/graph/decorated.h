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
  /// The cotangent of a linear input.
  std::function<mx::array(const Arrays& inputs, const mx::array& cotangent, int argument, mx::Stream)> vjp;
  /// The node's tangent, of inputs with the tangents of the linear ones in their places.
  std::function<mx::array(const Arrays& tangents, mx::Stream)> jvp;
  /// The node over mapped inputs, and its axis; the inner primitive's where it is not set.
  std::function<std::pair<mx::array, int>(const Arrays& inputs, const std::vector<int>& axes, mx::Stream)> vmap = {};
  std::vector<int> linear = {0};  ///< the inputs with derivatives: the node is linear in all of them together
  std::vector<int> axes = {};     ///< of the node, if its inputs' shapes and its own do not tell what it does
};

/// `node` is the one output of its primitive.
mx::array decorated(const mx::array& node, Rules rules, mx::Stream s);

}  // namespace natten
