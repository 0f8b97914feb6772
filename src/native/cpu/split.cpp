// Which kernel computes the split form and its gradients.
#include "native/cpu/split.h"

#include <limits>

#include "native/cpu/generic.h"

namespace natten::cpu {

void qk(const AttentionInputs& inputs, const Tensor& logits) {
  const Problem& p = inputs.problem;
  if (!split::supports(p)) return generic::qk(inputs, logits);
  split::products(inputs, {inputs.key, inputs.query, true, logits, p.head_dim, static_cast<float>(p.scale),
                           -std::numeric_limits<float>::infinity(), inputs.rpb});
}

void qk_backward_query(const AttentionInputs& inputs, const Tensor& dlogits, const Tensor& dq, float* drpb) {
  const Problem& p = inputs.problem;
  if (!split::supports(p)) return generic::qk_backward_query(inputs, dlogits, dq, drpb);
  split::sums(inputs, {inputs.key, dq, true, dlogits, p.head_dim, static_cast<float>(p.scale), 0.0f, nullptr, drpb});
}

void qk_backward_key(const AttentionInputs& inputs, const Tensor& dlogits, const Tensor& dk) {
  const Problem& p = inputs.problem;
  if (!split::supports(p)) return generic::qk_backward_key(inputs, dlogits, dk);
  split::key_sums(inputs, {dk, inputs.query, true, dlogits, p.head_dim, static_cast<float>(p.scale)});
}

void av(const AttentionInputs& inputs, const Tensor& attn, const Tensor& out) {
  const Problem& p = inputs.problem;
  if (!split::supports(p)) return generic::av(inputs, attn, out);
  split::sums(inputs, {inputs.value, out, false, attn, p.value_dim});
}

void av_backward_attn(const AttentionInputs& inputs, const Tensor& dout, const Tensor& dattn) {
  const Problem& p = inputs.problem;
  if (!split::supports(p)) return generic::av_backward_attn(inputs, dout, dattn);
  split::products(inputs, {inputs.value, dout, false, dattn, p.value_dim});
}

void av_backward_value(const AttentionInputs& inputs, const Tensor& attn, const Tensor& dout, const Tensor& dv) {
  const Problem& p = inputs.problem;
  if (!split::supports(p)) return generic::av_backward_value(inputs, attn, dout, dv);
  split::key_sums(inputs, {dv, dout, false, attn, p.value_dim});
}

}  // namespace natten::cpu
