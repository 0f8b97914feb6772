// Cuts a pass over all keys and queries into tasks, and runs them.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "native/cpu/axis_plan.h"
#include "native/cpu/extra_tokens.h"
#include "native/cpu/kernels.h"
#include "native/cpu/sample.h"
#include "native/cpu/tensor.h"

namespace natten::cpu {

/// Entries of the position biases of a head.
inline std::int64_t bias_entries(const Problem& p) {
  return (2 * p.axes[0].kernel_size - 1) * (2 * p.axes[1].kernel_size - 1) * (2 * p.axes[2].kernel_size - 1);
}

/// What the tasks of one sample share.
struct SamplePlan {
  std::int64_t batch;
  Sample sample;
  std::array<std::shared_ptr<const std::vector<AxisGroup>>, kAxes> axes;  ///< of all samples of the same length

  const AxisGroup& group(int axis, std::int64_t dilation_group) const { return (*axes[axis])[dilation_group]; }
};

/// What places are cut into parts: those of all keys, or those of the queries that are computed.
enum class Cut : std::uint8_t { keys, queries };

/// Calls run(plans) for the samples whose lengths are legal: all at once, where they share their tables, otherwise as
/// many at a time as bounds the memory of these.
void for_each_wave(const AttentionInputs& inputs, Cut cut,
                   const std::function<void(const std::vector<SamplePlan>&)>& run);

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
  // Sums that the task adds to, which are zero before it; null where not wanted.
  float* drpb = nullptr;    ///< tables of position biases, one per query head
  float* dextra = nullptr;  ///< of extra tokens, laid out like ExtraTokens of its head
};

/// Sums over the queries of all tasks. Every task has some of its own, which are added in the order of the tasks: the
/// bits do not depend on the threads.
class TaskSums {
 public:
  /// `drpb` and `dextra`, which hold zeros, or null where not wanted.
  TaskSums(const Problem& problem, float* drpb, const ExtraTokens* dextra);

  /// Tasks that may run at a time, of `tasks`: their memory is bounded.
  std::int64_t most(std::int64_t tasks) const;
  std::int64_t size() const { return extra_start_ + extra_size_; }  ///< floats of a task, whole cache lines
  void point(Task& task, float* memory) const;
  void clear(const Task& task) const;
  void add(const Task& task) const;

 private:
  float* const drpb_;
  const ExtraTokens* const dextra_;
  std::int64_t tables_ = 0, extra_start_, extra_size_ = 0;
};

/// Overrides the limit of the memory of the tasks' sums, in bytes; 0 returns to the default. For tests.
void set_task_sums_limit(std::int64_t bytes);

/// Bytes of the scratch of a sweep from which on it keeps no ring of packed queries: tuning::kSweepBytes, or what
/// set_sweep_limit() said last, where 0 returns to the default. For tests.
std::int64_t sweep_limit();
void set_sweep_limit(std::int64_t bytes);

/// All tasks of some samples, made when they are due.
class TaskList {
 public:
  TaskList(const Problem& problem, const std::vector<SamplePlan>& plans, const Partition& partition, Cut cut);
  std::int64_t size() const { return static_cast<std::int64_t>(plans_.size()) * grid_.size() * head_parts_; }
  /// Heads inside: their rows share pages, and cache lines when they are short.
  Task operator[](std::int64_t index) const;

 private:
  const std::vector<SamplePlan>& plans_;
  const Cut cut_;
  const Partition partition_;
  const std::int64_t kv_heads_, head_parts_;
  const Grid grid_;  ///< parts of all dilation groups
};

/// Of a sweep of tiles, one key/value head per task.
Partition sweep_partition(const Problem& problem);

/// Sweeps everything, in parallel.
void run_tasks(const AttentionInputs& inputs, double flops, const TaskSums& sums,
               const std::function<void(const Task&)>& run);

/// Fills a tensor with one value.
void fill(const Tensor& tensor, const Grid& grid, std::int64_t heads, std::int64_t dim, float value);

}  // namespace natten::cpu
