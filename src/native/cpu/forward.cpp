// Which kernel computes the fused forward pass.
#include "native/cpu/forward_plan.h"
#include "native/cpu/generic.h"
#include "native/cpu/split.h"

namespace natten::cpu {

bool is_tiled(const Problem& problem) {
  return forward::choose_design(problem) != forward::Design::generic && supports_tiles(problem) &&
         (problem.op == Op::attention || split::supports(problem));
}

void attention_forward(const AttentionInputs& inputs, const Tensor& out, float* lse) {
  if (forward::choose_design(inputs.problem) == forward::Design::generic) {
    generic::attention_forward(inputs, out, lse);
  } else {
    forward::tiled(inputs, out, lse);
  }
}

}  // namespace natten::cpu
