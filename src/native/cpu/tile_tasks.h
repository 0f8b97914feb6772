// Cuts a pass over all keys and queries into tasks, and runs them.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "native/cpu/axis_plan.h"
#include "native/cpu/kernels.h"
#include "native/cpu/sample.h"
#include "native/cpu/tensor.h"

namespace natten::cpu {

/// What the tasks of one sample share.
struct SamplePlan {
  std::int64_t batch;
  Sample sample;
  std::array<std::vector<AxisGroup>, kAxes> groups;  ///< one per dilation group
};

/// Of all samples whose lengths are legal.
std::vector<SamplePlan> plan_samples(const AttentionInputs& inputs);

/// How a problem is cut into tasks. Depends on the problem only, so that results do not depend on the threads.
struct Partition {
  std::array<std::int64_t, kAxes> parts;  ///< per axis, inside a dilation group
  std::int64_t heads;                     ///< key/value heads of a task
};

/// Keys and queries of one part of one dilation group, of some key/value heads and the query heads that read them.
struct Task {
  const SamplePlan* plan;
  Span kv_heads;
  std::array<std::int64_t, kAxes> group;
  std::array<Span, kAxes> owned;  ///< places
  float* drpb = nullptr;          ///< this task's tables of position biases, one per query head; zeros at first
};
std::vector<Task> plan_tasks(const Problem& problem, const std::vector<SamplePlan>& plans, const Partition& partition);

/// Of a sweep of tiles, one key/value head per task.
Partition sweep_partition(const Problem& problem);

/// Whether a sweep of tiles computes this problem; otherwise the generic kernels do.
bool supports_tiles(const Problem& problem);

/// Sweeps everything, in parallel. `drpb`, when given, becomes the sum of the tasks' tables, in their order.
void run_tasks(const AttentionInputs& inputs, double flops, float* drpb, const std::function<void(const Task&)>& run);

/// Fills a tensor with one value.
void fill(const Tensor& tensor, const Grid& grid, std::int64_t heads, std::int64_t dim, float value);

}  // namespace natten::cpu
