// Which kernel computes the fused forward pass.
#include "native/cpu/generic.h"

namespace natten::cpu {

void attention_forward(const AttentionInputs& inputs, const Tensor& out, float* lse) {
  generic::attention_forward(inputs, out, lse);
}

}  // namespace natten::cpu
