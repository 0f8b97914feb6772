#include "native/cpu/tile_tasks.h"

#include <algorithm>
#include <map>
#include <utility>

#include "native/cpu/bias_gradient.h"
#include "native/cpu/thread_pool.h"
#include "native/cpu/tuning.h"

namespace natten::cpu {

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

void for_each_wave(const AttentionInputs& inputs, const std::function<void(const std::vector<SamplePlan>&)>& run) {
  std::vector<SamplePlan> plans;
  std::map<std::pair<int, std::int64_t>, std::shared_ptr<const std::vector<AxisGroup>>> tables;  // by axis and length
  std::int64_t bytes = 0;
  for (std::int64_t batch = 0; batch < inputs.problem.batch; ++batch) {
    SamplePlan plan{batch, sample_of(inputs.problem, inputs.lengths, batch), {}};
    if (!plan.sample.is_legal) continue;
    if (bytes > tuning::kPlanBytes && inputs.lengths != nullptr) {
      run(plans);
      plans.clear();
      tables.clear();
      bytes = 0;
    }
    for (int a = 0; a < kAxes; ++a) {
      const Axis& axis = plan.sample.axes[a];
      auto& table = tables[{a, axis.length}];
      if (table == nullptr) {
        std::vector<AxisGroup> groups;
        groups.reserve(axis.dilation);
        for (std::int64_t g = 0; g < axis.dilation; ++g) {
          groups.emplace_back(axis, span_of(inputs.problem, a, axis.length), g);
          bytes += groups.back().bytes();
        }
        table = std::make_shared<const std::vector<AxisGroup>>(std::move(groups));
      }
      plan.axes[a] = table;
    }
    plans.push_back(std::move(plan));
  }
  if (!plans.empty()) run(plans);
}

TaskList::TaskList(const Problem& p, const std::vector<SamplePlan>& plans, const Partition& partition, Cut cut)
    : plans_(plans),
      cut_(cut),
      partition_(partition),
      kv_heads_(p.kv_heads),
      head_parts_((p.kv_heads + partition.heads - 1) / partition.heads),
      grid_{1,
            {p.axes[0].dilation * partition.parts[0], p.axes[1].dilation * partition.parts[1],
             p.axes[2].dilation * partition.parts[2]}} {}

Task TaskList::operator[](std::int64_t index) const {
  const std::int64_t head = index % head_parts_ * partition_.heads;
  const std::int64_t at_grid = index / head_parts_;
  const SamplePlan& plan = plans_[at_grid / grid_.size()];
  const Place at = grid_.place(at_grid % grid_.size());
  Task task{&plan, {head, std::min(head + partition_.heads, kv_heads_)}, {}, {}};
  for (int a = 0; a < kAxes; ++a) {
    const std::int64_t parts = partition_.parts[a];
    task.group[a] = at[a] / parts;
    const AxisGroup& group = plan.group(a, task.group[a]);
    const Span owned = cut_ == Cut::keys ? group.owned_keys : group.places_of_queries();
    task.owned[a] = part_of(size_of(owned), parts, at[a] % parts);
    task.owned[a] = {owned.start + task.owned[a].start, owned.start + task.owned[a].end};
  }
  return task;
}

Partition sweep_partition(const Problem& p) {
  std::array<std::int64_t, kAxes> parts{1, 1, 1}, places{}, most{};
  std::int64_t tasks = std::max<std::int64_t>(p.batch * p.kv_heads, 1);
  for (int a = 0; a < kAxes; ++a) {
    places[a] = std::max<std::int64_t>(p.span(a).key_rows / p.axes[a].dilation, 1);
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
  // A task that has a whole circular axis takes no query twice; one of two halves has a halo on both sides.
  const bool is_whole_better = outer == 2 && p.axes[2].is_circular && parts[2] == 1;
  const int least_tasks = is_whole_better ? tuning::kLeastCircularTasks : tuning::kLeastTasks;
  const std::int64_t cheap = places[outer] / (tuning::kCheapPartKernels * p.axes[outer].kernel_size);
  parts[outer] = std::min(most[outer], std::max(missing(least_tasks), std::min(missing(tuning::kManyTasks), cheap)));
  return {parts, 1};
}

void run_tasks(const AttentionInputs& inputs, double flops, float* drpb, const std::function<void(const Task&)>& run) {
  const Problem& p = inputs.problem;
  const Partition partition = sweep_partition(p);
  std::int64_t tables = p.heads / p.kv_heads;
  for (const Axis& axis : p.axes) tables *= 2 * axis.kernel_size - 1;
  if (drpb != nullptr) std::fill_n(drpb, tables * p.kv_heads, 0.0f);
  for_each_wave(inputs, [&](const std::vector<SamplePlan>& plans) {
    const TaskList tasks(p, plans, partition, Cut::keys);
    const std::int64_t per_head = tasks.size() / p.kv_heads;
    const BiasGradient gradient(drpb, p.kv_heads, tables, per_head);
    const double share = static_cast<double>(plans.size()) / static_cast<double>(p.batch);
    parallel_for(gradient.parts() * p.kv_heads, share * flops, [&](std::int64_t item) {
      const std::int64_t head = item % p.kv_heads, part = item / p.kv_heads;
      const Span owned = part_of(per_head, gradient.parts(), part);
      for (std::int64_t i = owned.start; i < owned.end; ++i) {
        Task task = tasks[i * p.kv_heads + head];
        task.drpb = gradient.part(head, part);
        run(task);
      }
    });
    gradient.add_up();
  });
}

}  // namespace natten::cpu
