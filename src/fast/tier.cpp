// The tier of kernels compiled at run time by MLX, for Apple's and NVIDIA's GPUs.
#include "ops/tier.h"

#include "fast/cost.h"
#include "fast/launch.h"
#include "fast/plan.h"
#include "mlx/device.h"

namespace natten {
namespace {

using fast::KernelId;

// Of all kernels of the operation and of its gradients, when it is asked about the forward.
Objection objection_to_kernels(const Problem& p, Role role) {
  if (role == Role::backward && p.op != Op::attention) return "the split form has a launch for each gradient";
  if (role > Role::backward) return "gradients of additional tokens are MLX's operations";
  if (role != Role::forward) return {};
  if (p.device != DeviceType::gpu && !fast::is_emulated()) return "kernels compiled at run time need a GPU device";
  return fast::objection(fast::nearest(p), fast::target());
}

KernelChoice choice(const Problem& call) {
  const Problem p = fast::nearest(call);
  const fast::Target target = fast::target();
  const KernelId kernel = fast::kernels_of(p, Role::forward).front();
  return {fast::kernel_name(kernel), fast::plan(p, kernel, target).describe()};
}

// What this machine calls the tier.
std::string tier_name() {
  const bool is_cuda = fast::target().platform == fast::Platform::cuda && mx::is_available(mx::Device::gpu);
  return is_cuda ? kFastCuda : kFast;
}

std::string costs(const Problem& call) {
  const Problem p = fast::nearest(call);
  const fast::Target target = fast::target();
  std::string lines = "on " + tier_name();
  for (const Role role : {Role::forward, Role::backward}) {
    for (const KernelId id : fast::kernels_of(p, role)) lines += "\n" + describe(fast::cost(p, id, target));
  }
  return lines;
}

}  // namespace

Tier fast_tier() {
  Tier tier;
  tier.name = tier_name();
  tier.unavailable = []() -> Objection {
    if (!fast::is_emulated() && !mx::is_available(mx::Device::gpu)) return "MLX finds no GPU on this machine";
    return fast::objection(fast::target());
  };
  tier.supports = objection_to_kernels;
  tier.run = fast::run_kernels;
  tier.choice = choice;
  tier.cost = costs;
  tier.takes = kSpan | kCircularAxis | kLongCausalKernel | kExtraTokens;
  tier.is_fused = true;
  return tier;
}

}  // namespace natten
