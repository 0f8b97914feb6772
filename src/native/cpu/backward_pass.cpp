// Cuts a backward pass into tasks, runs them and adds up what they share.
#include <algorithm>
#include <memory>

#include "native/cpu/backward.h"
#include "native/cpu/tensor.h"
#include "native/cpu/thread_pool.h"

namespace natten::cpu::backward {

void run_task(const Pass& pass, const Task& task);

bool supports_tiled(const Problem& problem) {
  // A causal window with a shared leader can end its empty slots on keys that other queries attend; the product of
  // their zero weight with a NaN there must not reach this query.
  const Axis& last = problem.axes[2];
  return !(last.is_causal && last.gna_stride > 1);
}

namespace {

void fill_zero(const Tensor& tensor, const Grid& grid, std::int64_t heads, std::int64_t dim) {
  const std::int64_t rows = grid.extent[1] * grid.extent[2];
  parallel_for(grid.batch * grid.extent[0], static_cast<double>(grid.size() * heads * dim), [&](std::int64_t item) {
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t head = 0; head < heads; ++head) {
        const Place at{item % grid.extent[0], i / grid.extent[2], i % grid.extent[2]};
        std::fill_n(row_of(tensor, item / grid.extent[0], at, head), dim * element_size(tensor.type), '\0');
      }
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
        for (std::int64_t g = 0; g < plan.sample.axes[a].dilation; ++g)
          plan.groups[a].emplace_back(plan.sample.axes[a], g);
      }
    }
    plans.push_back(std::move(plan));
  }
  return plans;
}

std::vector<Task> plan_tasks(const Problem& p, const std::vector<SamplePlan>& plans) {
  std::vector<Task> tasks;
  const std::array<std::int64_t, kAxes> parts = count_parts(p);
  const auto& axes = p.axes;
  const Place grid{axes[0].dilation * parts[0], axes[1].dilation * parts[1], axes[2].dilation * parts[2]};
  for (const SamplePlan& plan : plans) {
    for (std::int64_t i = 0; i < grid[0] * grid[1] * grid[2]; ++i) {
      const Place at = Grid{1, grid}.place(i);
      for (std::int64_t head = 0; head < p.kv_heads; ++head) {
        Task task{&plan, head, {}, {}, nullptr};
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

}  // namespace

void tiled(const AttentionInputs& inputs, const SavedForward& saved, const Gradients& gradients) {
  const Problem& p = inputs.problem;
  const Pass pass{inputs, saved, gradients, {gradients.query != nullptr, gradients.key != nullptr}};
  const bool is_strided = p.axes[0].stride * p.axes[1].stride * p.axes[2].stride > 1;
  const Grid tokens = token_grid(p);
  if (pass.wanted.query && (is_strided || inputs.lengths)) fill_zero(*gradients.query, tokens, p.heads, p.head_dim);
  if (pass.wanted.key_value && inputs.lengths) {
    fill_zero(*gradients.key, tokens, p.kv_heads, p.head_dim);
    fill_zero(*gradients.value, tokens, p.kv_heads, p.value_dim);
  }

  const std::vector<SamplePlan> plans = plan_samples(inputs);
  std::vector<Task> tasks = plan_tasks(p, plans);
  std::int64_t table = p.heads / p.kv_heads;
  for (const Axis& axis : p.axes) table *= 2 * axis.kernel_size - 1;
  std::vector<float> partial(gradients.rpb != nullptr ? table * tasks.size() : 0);
  if (gradients.rpb != nullptr) {
    for (std::size_t i = 0; i < tasks.size(); ++i) tasks[i].drpb = partial.data() + i * table;
  }
  const double products = (pass.wanted.query ? 3.0 : 2.0) + (pass.wanted.key_value ? 2.0 : 0.0);
  const double flops = products * static_cast<double>(p.batch * p.heads * p.queries()) *
                       static_cast<double>(p.kernel_volume() * (p.head_dim + p.value_dim));
  parallel_for(static_cast<std::int64_t>(tasks.size()), flops, [&](std::int64_t i) { run_task(pass, tasks[i]); });

  if (gradients.rpb == nullptr) return;
  std::fill_n(gradients.rpb, table * p.kv_heads, 0.0f);
  for (const Task& task : tasks) {
    float* sum = gradients.rpb + task.kv_head * table;
    for (std::int64_t i = 0; i < table; ++i) sum[i] += task.drpb[i];
  }
}

}  // namespace natten::cpu::backward
