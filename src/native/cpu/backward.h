// The tiled kernel of the fused backward pass: one sweep over the keys yields dq, drpb, dk and dv, or some of them.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "native/cpu/backward_plan.h"
#include "native/cpu/kernels.h"
#include "native/cpu/sample.h"

namespace natten::cpu::backward {

/// Null where not wanted. dk and dv come together.
struct Gradients {
  const Tensor* query = nullptr;
  float* rpb = nullptr;
  const Tensor* key = nullptr;
  const Tensor* value = nullptr;
};

/// Whether tiled() computes this problem; otherwise the generic kernels do.
bool supports_tiled(const Problem& problem);

void tiled(const AttentionInputs& inputs, const SavedForward& saved, const Gradients& gradients);

/// What the tasks of one sample share.
struct SamplePlan {
  std::int64_t batch;
  Sample sample;
  std::array<std::vector<AxisGroup>, kAxes> groups;  ///< one per dilation group
};

struct Pass {
  const AttentionInputs& inputs;
  const SavedForward& saved;
  const Gradients& gradients;
  Wanted wanted;
};

struct Task {
  const SamplePlan* plan;
  std::int64_t kv_head;
  std::array<std::int64_t, kAxes> group;
  std::array<Span, kAxes> owned;  ///< places
  float* drpb;                    ///< this task's tables, one per query head of the group; zeroed
};

}  // namespace natten::cpu::backward
