// The one place that gives autograd and vmap to primitives which have neither: those of compiled and JIT kernels.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "definition/problem.h"
#include "mlx/array.h"
#include "mlx/stream.h"

namespace natten {

namespace mx = mlx::core;

/// Where an array has its batch and its heads, so that a mapped axis can be folded into one of them.
enum class Role {
  tokens,   ///< [B, x, x, x, H, ...]: batch first, heads on axis 4
  bias,     ///< [H, ...]: heads first, shared by the batch
  lengths,  ///< [B, 3]: per sample, no heads
};

using Arrays = std::vector<mx::array>;

/// An operation on canonical arrays, computed by a tier.
struct Operation {
  std::string name;  ///< with `problem`, identifies the operation: equal ones may share a result
  Problem problem;
  std::vector<Role> inputs;
  std::vector<Role> outputs;

  /// The tier's nodes: outputs of one primitive, whose inputs are the given arrays, each perhaps behind a change of
  /// layout; or a composition of MLX operations, which know vmap.
  std::function<Arrays(const Problem&, const Arrays& inputs, mx::Stream)> run;
  /// Whether the tier takes a problem that vmap makes of this one.
  std::function<bool(const Problem&)> fits = [](const Problem&) { return true; };
  /// The same result from operations that MLX differentiates: serves jvp, and vjp where `vjp` is not set.
  std::function<Arrays(const Problem&, const Arrays& inputs, mx::Stream)> reference;
  /// Cotangents of the inputs `argnums`.
  std::function<Arrays(const Problem&, const Arrays& inputs, const Arrays& cotangents, const std::vector<int>& argnums,
                       const Arrays& outputs, mx::Stream)>
      vjp;
};

/// Cotangents of the inputs `argnums` of `function`, as MLX differentiates it.
Arrays gradients(const std::function<Arrays(const Arrays&)>& function, const Arrays& inputs,
                 const std::vector<int>& argnums, const Arrays& cotangents);

/// Runs the operation behind a primitive that answers vjp, jvp, vmap, output_shapes and is_equivalent. A mapped axis is
/// folded into the batch, or into the heads where a bias takes part (so that its gradient stays per example).
/// Replaying a trace with other shapes throws std::invalid_argument.
Arrays differentiable(const Operation& operation, const Arrays& inputs, mx::Stream s);

}  // namespace natten
