#include "ops/registry.h"

namespace natten {

Tier fast_tier() {
  Tier tier;
  tier.name = kFast;
  tier.unavailable = [] { return Objection("not built yet"); };
  tier.supports = [](const Problem& p) -> Objection {
    if (p.device != DeviceType::gpu) return "kernels compiled at run time need a GPU device";
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
