// The tier of kernels compiled at run time by MLX, for Apple's and NVIDIA's GPUs.
#include <algorithm>

#include "fast/cost.h"
#include "fast/launch.h"
#include "fast/plan.h"
#include "mlx/device.h"
#include "mlx/ops.h"
#include "ops/registry.h"

namespace natten {
namespace {

using fast::KernelId;
using fast::NamedArray;
using Optional = std::optional<mx::array>;
using Arrays = std::vector<mx::array>;

Objection objection(const Problem& p) {
  if (p.device != DeviceType::gpu && !fast::is_emulated()) return "kernels compiled at run time need a GPU device";
  return fast::objection(p, fast::platform());
}

/// Names of a call's arrays in the order in which the operation has them: kernels pick theirs.
std::vector<NamedArray> named(std::vector<NamedArray> arrays, const Optional& rpb, const Optional& lengths,
                              std::vector<NamedArray> saved, mx::Stream s) {
  if (rpb) arrays.push_back({"na_rpb", mx::contiguous(*rpb, false, s)});
  if (lengths) arrays.push_back({"na_lengths", mx::contiguous(*lengths, false, s)});
  arrays.insert(arrays.end(), saved.begin(), saved.end());
  return arrays;
}

std::vector<NamedArray> named(const AttentionInputs& inputs, std::vector<NamedArray> saved, mx::Stream s) {
  return named({{"na_query", inputs.query}, {"na_key", inputs.key}, {"na_value", inputs.value}}, inputs.rpb,
               inputs.lengths, std::move(saved), s);
}

std::vector<NamedArray> saved(const mx::array& out, const mx::array& lse, const mx::array& dout,
                              const mx::array& dlse) {
  return {{"na_out", out}, {"na_lse", lse}, {"na_dout", dout}, {"na_dlse", dlse}};
}

/// The gradient of query, and of rpb where there is one.
Arrays query_gradients(const Problem& p, KernelId kernel, const std::vector<NamedArray>& inputs, mx::Stream s) {
  if (!p.has_rpb) return fast::launch(p, {kernel}, inputs, {"na_dquery"}, s);
  const Arrays outputs = fast::launch(p, {kernel, KernelId::rpb_sum}, inputs, {"na_dquery", "na_drpb"}, s);
  return {outputs[0], outputs[1]};
}

KernelChoice choice(const Problem& p) {
  const KernelId kernel = p.op == Op::qk ? KernelId::qk : p.op == Op::av ? KernelId::av : KernelId::forward;
  return {fast::kernel_name(kernel), fast::plan(p, kernel, fast::platform()).describe(),
          fast::describe(fast::cost(p, kernel, fast::platform()))};
}

}  // namespace

Tier fast_tier() {
  Tier tier;
  tier.name = fast::kPlatform == fast::Platform::metal ? kFast : kFastCuda;
  tier.unavailable = []() -> Objection {
    if (fast::is_emulated() || mx::is_available(mx::Device::gpu)) return {};
    return "MLX finds no GPU on this machine";
  };
  tier.supports = objection;
  tier.choice = choice;
  tier.is_fused = true;

  tier.forward = [](const Problem& p, const AttentionInputs& inputs, mx::Stream s) {
    const Arrays outputs = fast::launch(p, {KernelId::forward}, named(inputs, {}, s), {"na_out", "na_lse"}, s);
    return std::pair{outputs[0], outputs[1]};
  };
  tier.backward_query = [](const Problem& p, const AttentionInputs& inputs, const mx::array& out, const mx::array& lse,
                           const mx::array& dout, const mx::array& dlse, mx::Stream s) {
    return query_gradients(p, KernelId::backward_query, named(inputs, saved(out, lse, dout, dlse), s), s);
  };
  tier.backward_key_value = [](const Problem& p, const AttentionInputs& inputs, const mx::array& out,
                               const mx::array& lse, const mx::array& dout, const mx::array& dlse,
                               mx::Stream s) -> Arrays {
    const Arrays outputs = fast::launch(p, {KernelId::delta, KernelId::backward_key_value},
                                        named(inputs, saved(out, lse, dout, dlse), s), {"na_dkey", "na_dvalue"}, s);
    return {outputs[0], outputs[1]};
  };

  tier.qk = [](const Problem& p, const mx::array& query, const mx::array& key, const Optional& rpb,
               const Optional& lengths, mx::Stream s) {
    return fast::launch(p, {KernelId::qk}, named({{"na_query", query}, {"na_key", key}}, rpb, lengths, {}, s),
                        {"na_logits"}, s)[0];
  };
  tier.qk_backward_query = [](const Problem& p, const mx::array& query, const mx::array& key, const Optional& rpb,
                              const Optional& lengths, const mx::array& dlogits, mx::Stream s) {
    return query_gradients(p, KernelId::qk_backward_query,
                           named({{"na_query", query}, {"na_key", key}}, rpb, lengths, {{"na_dlogits", dlogits}}, s),
                           s);
  };
  tier.qk_backward_key = [](const Problem& p, const mx::array& query, const mx::array& key, const Optional& rpb,
                            const Optional& lengths, const mx::array& dlogits, mx::Stream s) {
    return fast::launch(p, {KernelId::qk_backward_key},
                        named({{"na_query", query}, {"na_key", key}}, rpb, lengths, {{"na_dlogits", dlogits}}, s),
                        {"na_dkey"}, s)[0];
  };

  const auto av = [](KernelId kernel, const char* result) {
    return [kernel, result](const Problem& p, const mx::array& attn, const mx::array& value, const Optional& lengths,
                            const mx::array& dout, mx::Stream s) {
      return fast::launch(p, {kernel},
                          named({{"na_attn", attn}, {"na_value", value}}, {}, lengths, {{"na_dout", dout}}, s),
                          {result}, s)[0];
    };
  };
  tier.av = [](const Problem& p, const mx::array& attn, const mx::array& value, const Optional& lengths, mx::Stream s) {
    return fast::launch(p, {KernelId::av}, named({{"na_attn", attn}, {"na_value", value}}, {}, lengths, {}, s),
                        {"na_out"}, s)[0];
  };
  tier.av_backward_attn = av(KernelId::av_backward_attn, "na_dattn");
  tier.av_backward_value = av(KernelId::av_backward_value, "na_dvalue");
  return tier;
}

}  // namespace natten
