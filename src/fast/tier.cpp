// The tier of kernels compiled at run time by MLX, for Apple's and NVIDIA's GPUs.
#include "ops/tier.h"

#include <algorithm>

#include "fast/cost.h"
#include "fast/launch.h"
#include "fast/plan.h"
#include "mlx/device.h"
#include "mlx/ops.h"

namespace natten {
namespace {

using fast::KernelId;
using fast::NamedArray;
using Optional = std::optional<mx::array>;
using Arrays = std::vector<mx::array>;

Objection objection(const Problem& p) {
  if (p.device != DeviceType::gpu && !fast::is_emulated()) return "kernels compiled at run time need a GPU device";
  return fast::objection(p, fast::target());
}

/// A call's arrays under the names that kernels have for them, in the order in which the operation has them.
std::vector<NamedArray> named(std::vector<NamedArray> arrays, const Optional& rpb, const Optional& lengths,
                              const std::vector<NamedArray>& saved, mx::Stream s) {
  if (rpb) arrays.push_back({"na_rpb", mx::contiguous(*rpb, false, s)});
  if (lengths) arrays.push_back({"na_lengths", mx::contiguous(*lengths, false, s)});
  arrays.insert(arrays.end(), saved.begin(), saved.end());
  return arrays;
}

std::vector<NamedArray> named(const AttentionInputs& inputs, const std::vector<NamedArray>& saved, mx::Stream s) {
  return named({{"na_query", inputs.query}, {"na_key", inputs.key}, {"na_value", inputs.value}}, inputs.rpb,
               inputs.lengths, saved, s);
}

/// Results of kernels that share the names of their arrays; the gradient of rpb only where there is one.
Arrays run(const Problem& p, const std::vector<KernelId>& kernels, const std::vector<NamedArray>& inputs,
           std::vector<std::string> results, mx::Stream s) {
  if (!p.has_rpb) std::erase(results, "na_drpb");
  Arrays outputs = fast::launch(p, kernels, inputs, results, s);
  outputs.erase(outputs.begin() + static_cast<std::ptrdiff_t>(results.size()), outputs.end());
  return outputs;
}

/// One of the three ways to ask for gradients of attention.
auto gradients(std::vector<KernelId> (*kernels)(const Problem&), const std::vector<std::string>& results) {
  return [=](const Problem& p, const AttentionInputs& inputs, const mx::array& out, const mx::array& lse,
             const mx::array& dout, const mx::array& dlse, mx::Stream s) {
    const std::vector<NamedArray> saved = {{"na_out", out}, {"na_lse", lse}, {"na_dout", dout}, {"na_dlse", dlse}};
    return run(p, kernels(p), named(inputs, saved, s), results, s);
  };
}

KernelChoice choice(const Problem& p) {
  const fast::Target target = fast::target();
  const KernelId kernel = fast::forward_kernels(p).front();
  return {fast::kernel_name(kernel), fast::plan(p, kernel, target).describe()};
}

std::string costs(const Problem& p) {
  const fast::Target target = fast::target();
  std::string lines = target.platform == fast::Platform::metal ? "on Metal" : "on CUDA";
  for (const std::vector<KernelId>& kernels : {fast::forward_kernels(p), fast::gradient_kernels(p)}) {
    for (const KernelId id : kernels) lines += "\n" + describe(fast::cost(p, id, target));
  }
  return lines;
}

}  // namespace

Tier fast_tier() {
  Tier tier;
  const bool is_cuda = fast::target().platform == fast::Platform::cuda && mx::is_available(mx::Device::gpu);
  tier.name = is_cuda ? kFastCuda : kFast;
  tier.unavailable = []() -> Objection {
    if (!fast::is_emulated() && !mx::is_available(mx::Device::gpu)) return "MLX finds no GPU on this machine";
    return fast::objection(fast::target());
  };
  tier.supports = objection;
  tier.choice = choice;
  tier.cost = costs;
  tier.is_fused = true;

  tier.forward = [](const Problem& p, const AttentionInputs& inputs, mx::Stream s) {
    const Arrays outputs = run(p, fast::forward_kernels(p), named(inputs, {}, s), {"na_out", "na_lse"}, s);
    return std::pair{outputs[0], outputs[1]};
  };
  tier.backward_query = gradients(fast::query_gradient_kernels, {"na_dquery", "na_drpb"});
  tier.backward_key_value = gradients(fast::key_gradient_kernels, {"na_dkey", "na_dvalue"});
  tier.backward = gradients(fast::gradient_kernels, {"na_dquery", "na_drpb", "na_dkey", "na_dvalue"});

  tier.qk = [](const Problem& p, const mx::array& query, const mx::array& key, const Optional& rpb,
               const Optional& lengths, mx::Stream s) {
    return run(p, {KernelId::qk}, named({{"na_query", query}, {"na_key", key}}, rpb, lengths, {}, s), {"na_logits"},
               s)[0];
  };
  tier.qk_backward_query = [](const Problem& p, const mx::array& query, const mx::array& key, const Optional& rpb,
                              const Optional& lengths, const mx::array& dlogits, mx::Stream s) {
    return run(p, fast::query_gradient_kernels(p),
               named({{"na_query", query}, {"na_key", key}}, rpb, lengths, {{"na_dlogits", dlogits}}, s),
               {"na_dquery", "na_drpb"}, s);
  };
  tier.qk_backward_key = [](const Problem& p, const mx::array& query, const mx::array& key, const Optional& rpb,
                            const Optional& lengths, const mx::array& dlogits, mx::Stream s) {
    return run(p, {KernelId::qk_backward_key},
               named({{"na_query", query}, {"na_key", key}}, rpb, lengths, {{"na_dlogits", dlogits}}, s), {"na_dkey"},
               s)[0];
  };

  const auto av_gradient = [](KernelId kernel, const char* result) {
    return [kernel, result](const Problem& p, const mx::array& attn, const mx::array& value, const Optional& lengths,
                            const mx::array& dout, mx::Stream s) {
      return run(p, {kernel}, named({{"na_attn", attn}, {"na_value", value}}, {}, lengths, {{"na_dout", dout}}, s),
                 {result}, s)[0];
    };
  };
  tier.av = [](const Problem& p, const mx::array& attn, const mx::array& value, const Optional& lengths, mx::Stream s) {
    return run(p, {KernelId::av}, named({{"na_attn", attn}, {"na_value", value}}, {}, lengths, {}, s), {"na_out"},
               s)[0];
  };
  tier.av_backward_attn = av_gradient(KernelId::av_backward_attn, "na_dattn");
  tier.av_backward_value = av_gradient(KernelId::av_backward_value, "na_dvalue");
  return tier;
}

}  // namespace natten
