// The CPU kernels as MLX primitives.
#pragma once

#include "ops/tier.h"

namespace natten::cpu {

/// Inputs are in any layout.
Arrays run_kernel(const Call& call);
Arrays run_step(const StepCall& call);

/// Memory for a result.
void allocate(mx::array& a);

}  // namespace natten::cpu
