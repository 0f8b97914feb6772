#include "native/cpu/tile_tasks.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <map>
#include <memory>
#include <new>
#include <utility>

#include "native/cpu/thread_pool.h"
#include "native/cpu/tuning.h"

namespace natten::cpu {
namespace {

std::atomic<std::int64_t> limit_override{0}, sweep_limit_override{0};

}  // namespace

std::int64_t sweep_limit() {
  const std::int64_t override = sweep_limit_override.load(std::memory_order_relaxed);
  return override > 0 ? override : tuning::kSweepBytes;
}
void set_sweep_limit(std::int64_t bytes) {
  sweep_limit_override.store(bytes, std::memory_order_relaxed);
}

void set_task_sums_limit(std::int64_t bytes) {
  limit_override.store(bytes, std::memory_order_relaxed);
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

void for_each_wave(const AttentionInputs& inputs, Cut cut,
                   const std::function<void(const std::vector<SamplePlan>&)>& run) {
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
          groups.emplace_back(axis, span_of(inputs.problem, a, axis.length), g, cut == Cut::keys);
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
    // A row of queries in whole tiles: two parts of 24 would compute as many lanes as two of 32.
    const std::int64_t unit = cut_ == Cut::queries && a + 1 == kAxes ? Tile::kMaxLanes : 1;
    const Span part = part_of((size_of(owned) + unit - 1) / unit, parts, at[a] % parts);
    task.owned[a] = {std::min(owned.start + part.start * unit, owned.end),
                     std::min(owned.start + part.end * unit, owned.end)};
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
  // Shorter slabs of rows, where they are cheap, hold fewer packed queries and fewer sums between strips.
  const auto bytes = [&] {
    const auto part = [&](int a) { return (places[a] + parts[a] - 1) / parts[a]; };
    const auto queries = [&](int a) {
      const std::int64_t reached = part(a) + p.axes[a].kernel_size - 1;
      return p.axes[a].is_circular ? reached : std::min(reached, places[a]);
    };
    const auto attending = [&](int a) { return std::min(queries(a), p.axes[a].kernel_size * 3 / 2); };
    const std::int64_t tiles = (queries(2) + Tile::kMaxLanes - 1) / Tile::kMaxLanes;
    const auto strips = std::max<std::int64_t>(tiles / static_cast<std::int64_t>(tuning::kLeastStripTiles), 1);
    const std::int64_t width = (tiles + strips - 1) / strips * Tile::kMaxLanes;
    const std::int64_t rows = attending(0) * (outer == 0 ? queries(1) : attending(1) + tuning::kKeyBlockRows - 1);
    const std::int64_t packed = rows * width * (3 * p.head_dim + 2 * p.value_dim) * (p.heads / p.kv_heads);
    const std::int64_t carried = 2 * p.axes[2].kernel_size * part(0) * part(1) * (p.head_dim + p.value_dim);
    return 4 * (packed + (strips > 1 ? carried : 0));
  };
  const std::int64_t slabs = std::min(most[1], places[1] / (tuning::kCheapPartKernels * p.axes[1].kernel_size));
  while (parts[1] < slabs && bytes() > sweep_limit()) ++parts[1];
  return {parts, 1};
}

TaskSums::TaskSums(const Problem& p, float* drpb, const ExtraTokens* dextra) : drpb_(drpb), dextra_(dextra) {
  if (drpb != nullptr) tables_ = p.heads / p.kv_heads * bias_entries(p);
  if (drpb != nullptr) std::fill_n(drpb, tables_ * p.kv_heads, 0.0f);
  extra_start_ = whole_lines(tables_);
  if (dextra != nullptr) extra_size_ = dextra->size();
}

std::int64_t TaskSums::most(std::int64_t tasks) const {
  const std::int64_t override = limit_override.load(std::memory_order_relaxed);
  const std::int64_t limit = override > 0 ? override : tuning::kTaskSumsBytes;
  return size() == 0 ? tasks : std::clamp<std::int64_t>(limit / (4 * size()), 1, std::max<std::int64_t>(tasks, 1));
}

void TaskSums::point(Task& task, float* memory) const {
  if (drpb_ != nullptr) task.drpb = memory;
  if (extra_size_ > 0) task.dextra = memory + extra_start_;
}

void TaskSums::clear(const Task& task) const {
  if (drpb_ != nullptr) std::fill_n(task.drpb, tables_, 0.0f);
  if (extra_size_ > 0) std::fill_n(task.dextra, extra_size_, 0.0f);
}

void TaskSums::add(const Task& task) const {
  const std::int64_t head = task.kv_heads.start;
  const auto add_to = [](float* to, const float* from, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) to[i] += from[i];
  };
  if (drpb_ != nullptr) add_to(drpb_ + head * tables_, task.drpb, tables_);
  if (extra_size_ > 0) add_to(dextra_->keys(task.plan->batch, head), task.dextra, extra_size_);
}

void run_tasks(const AttentionInputs& inputs, double flops, const TaskSums& sums,
               const std::function<void(const Task&)>& run) {
  const Problem& p = inputs.problem;
  const Partition partition = sweep_partition(p);
  for_each_wave(inputs, Cut::keys, [&](const std::vector<SamplePlan>& plans) {
    const TaskList tasks(p, plans, partition, Cut::keys);
    const std::int64_t most = sums.most(tasks.size());
    // calloc leaves large blocks to the threads that first write to them.
    const std::unique_ptr<float, decltype(&std::free)> memory(
        sums.size() == 0 ? nullptr : static_cast<float*>(std::calloc(most * sums.size() + kLine, sizeof(float))),
        &std::free);
    if (sums.size() > 0 && memory == nullptr) throw std::bad_alloc();
    const auto task_of = [&](std::int64_t first, std::int64_t i) {
      Task task = tasks[first + i];
      sums.point(task, at_line(memory.get()) + i * sums.size());
      return task;
    };
    const double share = static_cast<double>(plans.size()) / static_cast<double>(p.batch * tasks.size());
    for (std::int64_t first = 0; first < tasks.size(); first += most) {
      const std::int64_t count = std::min(most, tasks.size() - first);
      parallel_for(count, share * flops * static_cast<double>(count), [&](std::int64_t i) {
        const Task task = task_of(first, i);
        if (first > 0) sums.clear(task);
        run(task);
      });
      for (std::int64_t i = 0; i < count && sums.size() > 0; ++i) sums.add(task_of(first, i));
    }
  });
}

}  // namespace natten::cpu
