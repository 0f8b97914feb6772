// Which kernel computes the split form and its gradients.
#include "native/cpu/generic.h"

namespace natten::cpu {

void qk(const AttentionInputs& inputs, const Tensor& logits) {
  generic::qk(inputs, logits);
}

void qk_backward_query(const AttentionInputs& inputs, const Tensor& dlogits, const Tensor& dq, float* drpb) {
  generic::qk_backward_query(inputs, dlogits, dq, drpb);
}

void qk_backward_key(const AttentionInputs& inputs, const Tensor& dlogits, const Tensor& dk) {
  generic::qk_backward_key(inputs, dlogits, dk);
}

void av(const AttentionInputs& inputs, const Tensor& attn, const Tensor& out) {
  generic::av(inputs, attn, out);
}

void av_backward_attn(const AttentionInputs& inputs, const Tensor& dout, const Tensor& dattn) {
  generic::av_backward_attn(inputs, dout, dattn);
}

void av_backward_value(const AttentionInputs& inputs, const Tensor& attn, const Tensor& dout, const Tensor& dv) {
  generic::av_backward_value(inputs, attn, dout, dv);
}

}  // namespace natten::cpu
