// The compiled tier: SIMD kernels on the CPU.
#include "ops/tier.h"

#include "native/cpu/forward_plan.h"
#include "native/primitives.h"

namespace natten {
namespace {

using Optional = std::optional<mx::array>;
using Arrays = std::vector<mx::array>;

Arrays pack(Arrays arrays, const Optional& rpb, const Optional& lengths, Arrays saved = {}) {
  if (rpb) arrays.push_back(*rpb);
  if (lengths) arrays.push_back(*lengths);
  arrays.insert(arrays.end(), saved.begin(), saved.end());
  return arrays;
}

Arrays pack(const AttentionInputs& inputs, Arrays saved = {}) {
  return pack({inputs.query, inputs.key, inputs.value}, inputs.rpb, inputs.lengths, std::move(saved));
}

Objection objection(const Problem& p) {
  if (p.device != DeviceType::cpu) return "compiled kernels run on the CPU device only";
  for (FloatType type : {p.query_type, p.key_type, p.value_type}) {
    if (type == FloatType::float64) return "float64 is computed by the pure tier only";
  }
  return {};
}

}  // namespace

Tier compiled_tier() {
  using cpu::Kernel;
  using cpu::run_kernel;
  Tier tier;
  tier.name = kCompiled;
  tier.unavailable = [] { return Objection(); };
  tier.supports = objection;
  tier.choice = [](const Problem& p) {
    const cpu::forward::Description description = cpu::forward::describe(p);
    return KernelChoice{description.kernel, description.tile};
  };
  tier.is_fused = true;

  tier.forward = [](const Problem& p, const AttentionInputs& inputs, mx::Stream s) {
    const Arrays results = run_kernel(Kernel::attention_forward, p, pack(inputs), s);
    return std::pair{results[0], results[1]};
  };
  tier.backward_query = [](const Problem& p, const AttentionInputs& inputs, const mx::array& out, const mx::array& lse,
                           const mx::array& dout, const mx::array& dlse, mx::Stream s) {
    return run_kernel(Kernel::attention_backward_query, p, pack(inputs, {out, lse, dout, dlse}), s);
  };
  tier.backward_key_value = [](const Problem& p, const AttentionInputs& inputs, const mx::array& out,
                               const mx::array& lse, const mx::array& dout, const mx::array& dlse, mx::Stream s) {
    return run_kernel(Kernel::attention_backward_key_value, p, pack(inputs, {out, lse, dout, dlse}), s);
  };
  tier.backward = [](const Problem& p, const AttentionInputs& inputs, const mx::array& out, const mx::array& lse,
                     const mx::array& dout, const mx::array& dlse, mx::Stream s) {
    return run_kernel(Kernel::attention_backward, p, pack(inputs, {out, lse, dout, dlse}), s);
  };
  tier.qk = [](const Problem& p, const mx::array& query, const mx::array& key, const Optional& rpb,
               const Optional& lengths, mx::Stream s) {
    return run_kernel(Kernel::qk, p, pack({query, key}, rpb, lengths), s)[0];
  };
  tier.qk_backward_query = [](const Problem& p, const mx::array& query, const mx::array& key, const Optional& rpb,
                              const Optional& lengths, const mx::array& dlogits, mx::Stream s) {
    return run_kernel(Kernel::qk_backward_query, p, pack({query, key}, rpb, lengths, {dlogits}), s);
  };
  tier.qk_backward_key = [](const Problem& p, const mx::array& query, const mx::array& key, const Optional& rpb,
                            const Optional& lengths, const mx::array& dlogits, mx::Stream s) {
    return run_kernel(Kernel::qk_backward_key, p, pack({query, key}, rpb, lengths, {dlogits}), s)[0];
  };
  tier.av = [](const Problem& p, const mx::array& attn, const mx::array& value, const Optional& lengths, mx::Stream s) {
    return run_kernel(Kernel::av, p, pack({attn, value}, {}, lengths), s)[0];
  };
  tier.av_backward_attn = [](const Problem& p, const mx::array& attn, const mx::array& value, const Optional& lengths,
                             const mx::array& dout, mx::Stream s) {
    return run_kernel(Kernel::av_backward_attn, p, pack({attn, value}, {}, lengths, {dout}), s)[0];
  };
  tier.av_backward_value = [](const Problem& p, const mx::array& attn, const mx::array& value, const Optional& lengths,
                              const mx::array& dout, mx::Stream s) {
    return run_kernel(Kernel::av_backward_value, p, pack({attn, value}, {}, lengths, {dout}), s)[0];
  };
  return tier;
}

}  // namespace natten
