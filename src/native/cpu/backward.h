// The fused backward pass: one sweep over the keys yields dq, drpb, dk and dv, or some of them.
#pragma once

#include "native/cpu/extra_tokens.h"
#include "native/cpu/tile_tasks.h"

namespace natten::cpu::backward {

/// Null where not wanted. dk and dv come together, and those of extra tokens with all others.
struct Gradients {
  const Tensor* query = nullptr;
  float* rpb = nullptr;
  const Tensor* key = nullptr;
  const Tensor* value = nullptr;
  const Tensor* extra = nullptr;  ///< of keys and of values

  const ExtraTokens* extra_tokens = nullptr;  ///< whose part in dq is always wanted

  Wanted wanted() const { return {query != nullptr, key != nullptr}; }
};

}  // namespace natten::cpu::backward
