// The CPU kernels as MLX primitives.
#pragma once

#include "ops/tier.h"

namespace natten::cpu {

/// Inputs are in any layout.
Arrays run_kernel(const Call& call);

}  // namespace natten::cpu
