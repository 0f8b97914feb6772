// The fused backward pass: one sweep over the keys yields dq, drpb, dk and dv, or some of them.
#pragma once

#include "native/cpu/extra_tokens.h"
#include "native/cpu/tile_tasks.h"

namespace natten::cpu::backward {

struct Pass {
  const AttentionInputs& inputs;
  const SavedForward& saved;
  const Gradients& gradients;
  const ExtraTokens& extra;  ///< whose part in dq is always wanted

  Wanted wanted() const { return {gradients.query.has_value(), gradients.key.has_value()}; }
};

}  // namespace natten::cpu::backward
