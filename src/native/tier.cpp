#include "ops/registry.h"

namespace natten {

Tier compiled_tier() {
  Tier tier;
  tier.name = kCompiled;
  tier.unavailable = [] { return Objection("not built yet"); };
  tier.supports = [](const Problem& p) -> Objection {
    if (p.device != DeviceType::cpu) return "compiled kernels run on the CPU device only";
    for (FloatType type : {p.query_type, p.key_type, p.value_type}) {
      if (type == FloatType::float64) return "float64 is computed by the pure tier only";
    }
    return {};
  };
  tier.choice = [](const Problem&) { return KernelChoice{}; };
  tier.is_fused = true;
  return tier;
}

}  // namespace natten
