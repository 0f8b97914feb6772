#include "native/cpu/tile_tasks.h"

#include <algorithm>
#include <utility>

#include "native/cpu/thread_pool.h"
#include "native/cpu/tuning.h"

namespace natten::cpu {

bool supports_tiles(const Problem& problem) {
  // A causal window with a shared leader can have empty slots on keys that other queries attend; the product of their
  // zero weight with a NaN there must not reach this query.
  const Axis& last = problem.axes[2];
  return !(last.is_causal && last.gna_stride > 1);
}

void fill(const Tensor& tensor, const Grid& grid, std::int64_t heads, std::int64_t dim, float value) {
  const double elements = static_cast<double>(grid.size() * heads * dim);
  parallel_for(grid.batch * grid.extent[0], elements, [&](std::int64_t item) {
    for (std::int64_t i = 0; i < grid.extent[1] * grid.extent[2]; ++i) {
      const std::int64_t batch = item / grid.extent[0];
      const Place at{item % grid.extent[0], i / grid.extent[2], i % grid.extent[2]};
      with_storage_type(tensor.type, [&](auto storage) {
        from_float(value, storage);
        for (std::int64_t head = 0; head < heads; ++head) {
          std::fill_n(reinterpret_cast<decltype(storage)*>(row_of(tensor, batch, at, head)), dim, storage);
        }
      });
    }
  });
}

std::vector<SamplePlan> plan_samples(const AttentionInputs& inputs) {
  std::vector<SamplePlan> plans;
  for (std::int64_t batch = 0; batch < inputs.problem.batch; ++batch) {
    SamplePlan plan{batch, sample_of(inputs.problem, inputs.lengths, batch), {}};
    if (!plan.sample.is_legal) continue;
    if (inputs.lengths == nullptr && !plans.empty()) {
      plan.groups = plans.front().groups;
    } else {
      for (int a = 0; a < kAxes; ++a) {
        const Axis& axis = plan.sample.axes[a];
        for (std::int64_t g = 0; g < axis.dilation; ++g) plan.groups[a].emplace_back(axis, g);
      }
    }
    plans.push_back(std::move(plan));
  }
  return plans;
}

std::vector<Task> plan_tasks(const Problem& p, const std::vector<SamplePlan>& plans, const Partition& partition) {
  std::vector<Task> tasks;
  const auto& parts = partition.parts;
  const auto& axes = p.axes;
  const Grid grid{1, {axes[0].dilation * parts[0], axes[1].dilation * parts[1], axes[2].dilation * parts[2]}};
  for (const SamplePlan& plan : plans) {
    for (std::int64_t i = 0; i < grid.size(); ++i) {
      const Place at = grid.place(i);
      // Heads inside: their rows share pages, and cache lines when they are short.
      for (std::int64_t head = 0; head < p.kv_heads; head += partition.heads) {
        Task task{&plan, {head, std::min(head + partition.heads, p.kv_heads)}, {}, {}};
        for (int a = 0; a < kAxes; ++a) {
          task.group[a] = at[a] / parts[a];
          task.owned[a] = part_of(plan.groups[a][task.group[a]].places, parts[a], at[a] % parts[a]);
        }
        tasks.push_back(task);
      }
    }
  }
  return tasks;
}

Partition sweep_partition(const Problem& p) {
  std::array<std::int64_t, kAxes> parts{1, 1, 1}, places{}, most{};
  std::int64_t tasks = std::max<std::int64_t>(p.batch * p.kv_heads, 1);
  for (int a = 0; a < kAxes; ++a) {
    places[a] = p.axes[a].length / p.axes[a].dilation;
    most[a] =
        std::max<std::int64_t>(1, places[a] / std::max<std::int64_t>(2 * p.axes[a].kernel_size, tuning::kLeastPart));
    tasks *= p.axes[a].dilation;
  }
  // The last axis first: a long row does not fit the cache. A row of rank 1 costs its thread nothing else.
  const std::int64_t longest = std::max<std::int64_t>(tuning::kLongestRow, 8 * p.axes[2].kernel_size);
  parts[2] = std::min(most[2], (places[2] + longest - 1) / longest);
  tasks *= parts[2];
  const int outer = places[0] > 1 ? 0 : places[1] > 1 ? 1 : 2;
  const auto missing = [&](std::int64_t wanted) {
    return parts[outer] * std::max<std::int64_t>((wanted + tasks - 1) / tasks, 1);
  };
  const std::int64_t cheap = places[outer] / (tuning::kCheapPartKernels * p.axes[outer].kernel_size);
  parts[outer] =
      std::min(most[outer], std::max(missing(tuning::kLeastTasks), std::min(missing(tuning::kManyTasks), cheap)));
  return {parts, 1};
}

void run_tasks(const AttentionInputs& inputs, double flops, float* drpb, const std::function<void(const Task&)>& run) {
  const Problem& p = inputs.problem;
  const std::vector<SamplePlan> plans = plan_samples(inputs);
  std::vector<Task> tasks = plan_tasks(p, plans, sweep_partition(p));
  std::int64_t tables = p.heads / p.kv_heads;
  for (const Axis& axis : p.axes) tables *= 2 * axis.kernel_size - 1;
  std::vector<float> partial(drpb == nullptr ? 0 : tables * tasks.size());
  if (drpb != nullptr) {
    for (std::size_t i = 0; i < tasks.size(); ++i) tasks[i].drpb = partial.data() + i * tables;
  }
  parallel_for(static_cast<std::int64_t>(tasks.size()), flops, [&](std::int64_t i) { run(tasks[i]); });

  if (drpb == nullptr) return;
  std::fill_n(drpb, tables * p.kv_heads, 0.0f);
  for (const Task& task : tasks) {
    float* sum = drpb + task.kv_heads.start * tables;
    for (std::int64_t i = 0; i < tables; ++i) sum[i] += task.drpb[i];
  }
}

}  // namespace natten::cpu
