// The one place that gives autograd and vmap to what tiers compute: compiled and JIT kernels have neither.
#pragma once

#include "ops/tier.h"

namespace natten {

/// An operation on canonical arrays, or a part of its backward, computed by a tier.
struct Operation {
  TierPtr tier;
  TierPtr reference;  ///< differentiated by MLX: for derivatives that `tier` has no kernels for
  Problem problem;
  Role role = Role::forward;
};

/// Runs an operation, behind a primitive that answers vjp, jvp, vmap, output_shapes and is_equivalent. The backward is
/// made when somebody differentiates. A mapped axis is folded into the batch, or into the heads where a bias takes part
/// (so that its gradient stays per example). Replaying a trace with other shapes throws std::invalid_argument.
Arrays run(const Operation& operation, const Arrays& inputs, mx::Stream s);

}  // namespace natten
