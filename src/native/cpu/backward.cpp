// Which kernel computes the backward passes of the fused form.
#include "native/cpu/backward.h"

#include "native/cpu/generic.h"

namespace natten::cpu {

void attention_backward_query(const AttentionInputs& inputs, const SavedForward& saved, const Tensor& dq, float* drpb) {
  if (!supports_tiles(inputs.problem)) return generic::attention_backward_query(inputs, saved, dq, drpb);
  backward::tiled(inputs, saved, {&dq, drpb, nullptr, nullptr});
}

void attention_backward_key_value(const AttentionInputs& inputs, const SavedForward& saved, const Tensor& dk,
                                  const Tensor& dv) {
  if (!supports_tiles(inputs.problem)) return generic::attention_backward_key_value(inputs, saved, dk, dv);
  backward::tiled(inputs, saved, {nullptr, nullptr, &dk, &dv});
}

void attention_backward(const AttentionInputs& inputs, const SavedForward& saved, const Tensor& dq, float* drpb,
                        const Tensor& dk, const Tensor& dv) {
  if (!supports_tiles(inputs.problem)) {
    generic::attention_backward_query(inputs, saved, dq, drpb);
    generic::attention_backward_key_value(inputs, saved, dk, dv);
    return;
  }
  backward::tiled(inputs, saved, {&dq, drpb, &dk, &dv});
}

}  // namespace natten::cpu
