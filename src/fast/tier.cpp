// The tier of kernels compiled at run time by MLX, for Apple's and NVIDIA's GPUs.
#include "ops/tier.h"

#include "fast/cost.h"
#include "fast/launch.h"
#include "fast/plan.h"
#include "mlx/device.h"
#include "mlx/ops.h"

namespace natten {
namespace {

using fast::KernelId;

// Of all kernels of the operation and of its gradients, when it is asked about the forward.
Objection objection_to_kernels(const Problem& p, Role role) {
  if (role == Role::backward && p.op != Op::attention) return "the split form has a launch for each gradient";
  if (role != Role::forward) return {};
  if (p.device != DeviceType::gpu && !fast::is_emulated()) return "kernels compiled at run time need a GPU device";
  return fast::objection(fast::nearest(p), fast::target());
}

std::vector<KernelId> kernels_of(const Problem& p, Role role) {
  switch (role) {
    case Role::forward:
      return fast::forward_kernels(p);
    case Role::backward_query:
      return fast::query_gradient_kernels(p);
    case Role::backward_key_value:
      return fast::key_gradient_kernels(p);
    default:
      return fast::gradient_kernels(p);
  }
}

std::string kernel_name_of(Argument argument) {
  return std::string("na_") + name_of(argument);
}

Arrays run_kernels(const Call& call) {
  const Arguments arguments = inputs_of(call.problem, call.role);
  std::vector<fast::NamedArray> inputs;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const bool is_dense =  // as kernels take them: no copy is made of what is so already
        arguments[i] == Argument::rpb || arguments[i] == Argument::lengths || arguments[i] == Argument::lse;
    const mx::array& a = call.inputs[i];
    inputs.push_back({kernel_name_of(arguments[i]), is_dense ? mx::contiguous(a, false, call.stream) : a});
  }
  std::vector<std::string> results;
  for (const Argument result : outputs_of(call.problem, call.role)) results.push_back(kernel_name_of(result));
  Arrays outputs =
      fast::launch(fast::nearest(call.problem), kernels_of(call.problem, call.role), inputs, results, call.stream);
  outputs.erase(outputs.begin() + static_cast<std::ptrdiff_t>(results.size()), outputs.end());
  return outputs;
}

KernelChoice choice(const Problem& call) {
  const Problem p = fast::nearest(call);
  const fast::Target target = fast::target();
  const KernelId kernel = fast::forward_kernels(p).front();
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
  for (const std::vector<KernelId>& kernels : {fast::forward_kernels(p), fast::gradient_kernels(p)}) {
    for (const KernelId id : kernels) lines += "\n" + describe(fast::cost(p, id, target));
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
  tier.run = run_kernels;
  tier.choice = choice;
  tier.cost = costs;
  tier.is_fused = true;
  return tier;
}

}  // namespace natten
