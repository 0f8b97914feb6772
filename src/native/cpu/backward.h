// The fused backward pass: one sweep over the keys yields dq, drpb, dk and dv, or some of them.
#pragma once

#include "native/cpu/tile_tasks.h"

namespace natten::cpu::backward {

/// Null where not wanted. dk and dv come together.
struct Gradients {
  const Tensor* query = nullptr;
  float* rpb = nullptr;
  const Tensor* key = nullptr;
  const Tensor* value = nullptr;

  Wanted wanted() const { return {query != nullptr, key != nullptr}; }
};

}  // namespace natten::cpu::backward
