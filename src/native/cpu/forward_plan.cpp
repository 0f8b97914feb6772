#include "native/cpu/forward_plan.h"

#include <algorithm>
#include <cstring>

#include "native/cpu/matrix_plan.h"
#include "native/cpu/target.h"
#include "native/cpu/tensor.h"
#include "native/cpu/thread_pool.h"
#include "native/cpu/tuning.h"

namespace natten::cpu {
namespace forward {

// One task of the kernel of that name.
void run_task(const Pass& pass, const Task& task);
void run_lanes_task(const Pass& pass, const Task& task);
void run_direct_task(const Pass& pass, const Task& task);
// False, with nothing done, where a value is not finite.
bool run_matrix_task(const Pass& pass, const Task& task);

Design choose_design(const Problem& p) {
  const Design design = choose_vector_design(p);
  return design != Design::few_queries && takes_matrix_unit(p) ? Design::matrix : design;
}

Design choose_vector_design(const Problem& p) {
  const bool is_one_axis = p.axes[0].kernel_size == 1 && p.axes[1].kernel_size == 1;
  if (!is_one_axis) return Design::shift;
  const std::int64_t channels = p.head_dim + p.value_dim, kernel_size = p.axes[2].kernel_size;
  const std::int64_t longest = channels > tuning::kDirectChannels    ? tuning::kDirectKernelWide
                               : channels == tuning::kDirectChannels ? tuning::kDirectKernel
                                                                     : 0;
  if (kernel_size >= tuning::kFewKernel && p.queries(2) <= tuning::kFewQueries && !p.axes[2].is_circular) {
    return Design::few_queries;
  }
  if (kernel_size <= longest) return Design::direct;
  return kernel_size >= tuning::kQueryLanesKernel ? Design::query_lanes : Design::shift;
}

std::int64_t few_segments(const Problem& p) {
  const std::int64_t row = p.kv_heads * (p.head_dim * static_cast<std::int64_t>(element_size(p.key_type)) +
                                         p.value_dim * static_cast<std::int64_t>(element_size(p.value_type)));
  const std::int64_t keys = std::min(p.axes[2].kernel_size + p.queries(2) - 1, p.span(2).key_rows);
  std::int64_t tasks = p.batch * p.queries(0) * p.queries(1);
  for (const Axis& axis : p.axes) tasks *= axis.dilation;
  return std::clamp<std::int64_t>(keys * row / tuning::kFewSegmentBytes, 1,
                                  std::max<std::int64_t>(tuning::kFewTasks / std::max<std::int64_t>(tasks, 1), 1));
}

bool is_segmented(const Problem& p) {
  const std::int64_t scores = 4 * Tile::kMaxLanes * p.kernel_volume();
  const std::int64_t keys = 4 * (p.head_dim + p.value_dim) * (tuning::kForwardRow + p.axes[2].kernel_size) *
                            p.axes[0].kernel_size * (tuning::kForwardLeastRows + p.axes[1].kernel_size);
  return choose_vector_design(p) == Design::shift &&
         (scores > tuning::kSegmentedScoreBytes || keys > tuning::kSegmentedPackedBytes);
}

Partition partition_of(const Problem& p) {
  std::array<std::int64_t, kAxes> parts{1, 1, 1}, places{}, most{};
  std::int64_t groups = p.batch;
  for (int a = 0; a < kAxes; ++a) {
    const Axis& axis = p.axes[a];
    places[a] = std::max<std::int64_t>((p.span(a).query_rows + axis.dilation - 1) / axis.dilation, 1);
    groups *= axis.dilation;
  }
  if (choose_design(p) == Design::few_queries) return {{places[0], places[1], 1}, p.kv_heads};
  const auto cut = [&](int axis, std::int64_t longest) { parts[axis] = (places[axis] + longest - 1) / longest; };
  // The last axis in whole vectors, as long as a row of tiles is worth its border.
  const Design design = choose_design(p);
  const bool is_matrix = design == Design::matrix, is_lanes = design == Design::query_lanes;
  const bool is_one_axis = p.axes[0].kernel_size == 1 && p.axes[1].kernel_size == 1;
  const bool is_long = is_lanes || (is_matrix && is_one_axis);
  std::int64_t row = is_long
                         ? std::max<std::int64_t>(tuning::kForwardRow, tuning::kQueryLanesPart * p.axes[2].kernel_size)
                         : tuning::kForwardRow;
  cut(2, row);
  for (int a = 0; a < 2; ++a) {
    const std::int64_t least =
        std::max<std::int64_t>(tuning::kForwardLeastRows, tuning::kForwardLeastKernels * p.axes[a].kernel_size);
    most[a] = std::max<std::int64_t>(1, places[a] / least);
  }
  // What has to be packed at a time slides along the outermost axis.
  const int slide_axis = p.axes[0].kernel_size > 1 ? 0 : 1;
  const auto keys_along = [&](int a) { return (places[a] + parts[a] - 1) / parts[a] + p.axes[a].kernel_size - 1; };
  std::int64_t heads = is_long ? 1 : p.kv_heads;
  const auto is_too_large = [&] {
    std::int64_t packed = (is_matrix ? 2 : 4) * heads * (p.head_dim + p.value_dim) * keys_along(2);
    packed *=
        slide_axis == 0 ? p.axes[0].kernel_size * keys_along(1) : p.axes[1].kernel_size + tuning::kForwardLeastStep;
    return packed > tuning::kForwardPackedBytes;
  };
  // Heads of a token lie side by side: several at a time read memory in longer runs.
  const auto run_of_heads = [&] {
    return heads * std::min(p.head_dim, p.value_dim) * static_cast<std::int64_t>(element_size(p.key_type));
  };
  const auto drop_heads = [&](std::int64_t least_run) {
    while (heads > 1 && is_too_large() && run_of_heads() >= 2 * least_run) heads = (heads + 1) / 2;
  };
  const bool in_segments = !is_matrix && is_segmented(p), is_direct = design == Design::direct;
  if (in_segments) heads = 1;
  if (is_direct) cut(2, row = tuning::kDirectRow);
  if (!is_long && !in_segments && !is_direct) {
    while (heads > 1 && run_of_heads() > tuning::kForwardLongestRun) heads = (heads + 1) / 2;
    const auto shorten = [&](std::int64_t least) {
      while (slide_axis == 1 && is_too_large() && row > least) cut(2, row /= 2);
    };
    shorten(tuning::kForwardShortRow);
    drop_heads(tuning::kForwardShortRun);
    shorten(tuning::kForwardShortestRow);
    drop_heads(1);
    while (slide_axis == 0 && is_too_large() && parts[1] < most[1]) ++parts[1];
  }
  const auto split = [&] {
    // The axis whose halo grows least.
    const int axis = parts[0] < most[0] && (parts[1] >= most[1] || places[0] / parts[0] * p.axes[1].kernel_size >=
                                                                       places[1] / parts[1] * p.axes[0].kernel_size)
                         ? 0
                         : 1;
    if (parts[axis] >= most[axis]) return false;
    ++parts[axis];
    return true;
  };
  const auto are_few = [&] {
    return groups * ((p.kv_heads + heads - 1) / heads) * parts[0] * parts[1] * parts[2] < tuning::kForwardLeastTasks;
  };
  while (are_few() && split()) {
  }
  while (heads > 1 && are_few()) heads = (heads + 1) / 2;
  const std::int64_t longest = std::max<std::int64_t>(1, places[2] / tuning::kForwardLeastRow);
  while (are_few() && parts[2] < longest) ++parts[2];
  return {parts, heads};
}

Description describe(const Problem& p) {
  if (p.op != Op::attention) return {"split", cpu_target()};
  const auto parts = partition_of(p).parts;
  std::string tile;
  for (int a = kAxes - p.rank; a < kAxes; ++a) {
    const std::int64_t places = (p.span(a).query_rows + p.axes[a].dilation - 1) / p.axes[a].dilation;
    if (!tile.empty()) tile += 'x';
    tile += std::to_string((places + parts[a] - 1) / parts[a]);
  }
  const Design design = choose_design(p);
  const std::string name = design == Design::matrix        ? "matrix unit"
                           : design == Design::shift       ? "shift"
                           : design == Design::direct      ? "direct"
                           : design == Design::few_queries ? "few queries"
                                                           : "query lanes";
  tile += tile == "1" ? " query" : " queries";
  if (design == Design::shift && is_segmented(p)) tile += ", windows in segments";
  return {name, "tasks of " + tile + ", " + cpu_target()};
}

}  // namespace forward

void attention_forward(const AttentionInputs& inputs, const Tensor& out, float* lse) {
  using namespace forward;
  const Problem& p = inputs.problem;
  if (p.batch == 0) return;
  const Grid outputs = output_grid(p);
  if (inputs.lengths != nullptr) {
    // What lies behind a sample's lengths is zero.
    parallel_for(outputs.size(), static_cast<double>(outputs.size() * p.heads * p.value_dim), [&](std::int64_t i) {
      const std::int64_t batch = i / outputs.per_sample();
      const Place at = outputs.place(i % outputs.per_sample());
      for (std::int64_t head = 0; head < p.heads; ++head) {
        std::memset(row_of(out, batch, at, head), 0, p.value_dim * element_size(out.type));
      }
      std::fill_n(lse + i * p.heads, p.heads, 0.0f);
    });
  }

  const Partition partition = partition_of(p);
  const double flops = 2.0 * static_cast<double>(p.batch * p.heads * p.queries()) *
                       static_cast<double>((p.kernel_volume() + p.extra_tokens) * (p.head_dim + p.value_dim));
  ExtraTokens extra(p, inputs.extra_key, inputs.extra_value);
  const Pass pass{inputs, out, lse, extra};
  const Design design = choose_vector_design(p);
  if (design != Design::few_queries) extra.load();
  const auto run_vectors = design == Design::query_lanes ? run_lanes_task
                           : design == Design::direct    ? run_direct_task
                                                         : run_task;
  const bool is_matrix = choose_design(p) == Design::matrix;
  const auto run = [&](const Task& task) {
    if (!is_matrix) return run_vectors(pass, task);
    if (run_matrix_task(pass, task)) return;
    Task one = task;
    for (std::int64_t head = task.kv_heads.start; head < task.kv_heads.end; ++head) {
      one.kv_heads = {head, head + 1};
      run_vectors(pass, one);
    }
  };
  for_each_wave(inputs, Cut::queries, [&](const std::vector<SamplePlan>& plans) {
    const TaskList tasks(p, plans, partition, Cut::queries);
    const double share = static_cast<double>(plans.size()) / static_cast<double>(p.batch);
    if (design == Design::few_queries) return run_few_queries(pass, tasks, share * flops);
    parallel_for(tasks.size(), share * flops, [&](std::int64_t i) { run(tasks[i]); });
  });
}

}  // namespace natten::cpu
