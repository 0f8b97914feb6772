// Which kernel computes the fused forward pass.
#include "native/cpu/forward_plan.h"
#include "native/cpu/generic.h"

namespace natten::cpu {

void attention_forward(const AttentionInputs& inputs, const Tensor& out, float* lse) {
  switch (forward::choose_design(inputs.problem)) {
    case forward::Design::generic:
      return generic::attention_forward(inputs, out, lse);
    case forward::Design::shift:
      return forward::tiled(inputs, out, lse);
  }
}

}  // namespace natten::cpu
