// Which kernel computes the backward passes of the fused form.
#include "native/cpu/generic.h"

namespace natten::cpu {

void attention_backward_query(const AttentionInputs& inputs, const SavedForward& saved, const Tensor& dq, float* drpb) {
  generic::attention_backward_query(inputs, saved, dq, drpb);
}

void attention_backward_key_value(const AttentionInputs& inputs, const SavedForward& saved, const Tensor& dk,
                                  const Tensor& dv) {
  generic::attention_backward_key_value(inputs, saved, dk, dv);
}

}  // namespace natten::cpu
