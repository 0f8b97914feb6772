// Cuts a pass over all keys and queries into tasks, and runs them.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "native/cpu/backward_plan.h"
#include "native/cpu/kernels.h"
#include "native/cpu/sample.h"
#include "native/cpu/tensor.h"

namespace natten::cpu::backward {

/// What the tasks of one sample share.
struct SamplePlan {
  std::int64_t batch;
  Sample sample;
  std::array<std::vector<AxisGroup>, kAxes> groups;  ///< one per dilation group
};

/// Keys and queries of one part of one dilation group, of a key/value head and the query heads that read it.
struct Task {
  const SamplePlan* plan;
  std::int64_t kv_head;
  std::array<std::int64_t, kAxes> group;
  std::array<Span, kAxes> owned;  ///< places
  float* drpb;                    ///< this task's tables of position biases, one per query head; zeros at first
};

/// Whether a sweep of tiles computes this problem; otherwise the generic kernels do.
bool supports_tiles(const Problem& problem);

/// Runs a task for everything, in parallel. `drpb`, when given, becomes the sum of the tasks' tables, in their order.
void run_tasks(const AttentionInputs& inputs, double flops, float* drpb, const std::function<void(const Task&)>& run);

/// Fills a tensor with one value.
void fill(const Tensor& tensor, const Grid& grid, std::int64_t heads, std::int64_t dim, float value);

}  // namespace natten::cpu::backward
