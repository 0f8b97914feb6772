// The compiled tier: SIMD kernels on the CPU.
#include "ops/tier.h"

#include "native/cpu/forward_plan.h"
#include "native/primitives.h"

namespace natten {
namespace {

Objection objection_to_cpu_kernels(const Problem& p, Role role) {
  if (role == Role::backward && p.op != Op::attention) return "the split form has a kernel for each gradient";
  if (role == Role::backward_extra) return "gradients of additional tokens alone are MLX's operations";
  if (p.device != DeviceType::cpu) return "compiled kernels run on the CPU device only";
  for (FloatType type : {p.query_type, p.key_type, p.value_type}) {
    if (type == FloatType::float64) return "float64 is computed by the pure tier only";
  }
  return {};
}

}  // namespace

Tier compiled_tier() {
  Tier tier;
  tier.name = kCompiled;
  tier.unavailable = [] { return Objection(); };
  tier.supports = objection_to_cpu_kernels;
  tier.run = cpu::run_kernel;
  tier.step = cpu::run_step;
  tier.choice = [](const Problem& p) {
    const cpu::forward::Description description = cpu::forward::describe(p);
    return KernelChoice{description.kernel, description.tile};
  };
  tier.takes_pieces = [](const Problem& p) {
    // Windows that wrap find their keys by their number among all of an axis.
    const auto wraps = [&](int a) { return p.axes[a].is_circular && p.span(a).key_rows >= p.axes[a].length; };
    return p.op == Op::attention && !wraps(p.pieces->axis);
  };
  tier.takes = kSpan | kCircularAxis | kLongCausalKernel | kExtraTokens;
  tier.is_fused = true;
  return tier;
}

}  // namespace natten
