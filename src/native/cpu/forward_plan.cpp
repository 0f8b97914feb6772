#include "native/cpu/forward_plan.h"

#include <algorithm>

#include "native/cpu/matrix_plan.h"
#include "native/cpu/target.h"
#include "native/cpu/tuning.h"

namespace natten::cpu::forward {

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

std::int64_t few_sums_size(const Problem& p) {
  return whole_lines(p.queries(2) * p.heads * (whole_lines(p.value_dim) + 2));
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
    const std::int64_t unit = a + 1 == kAxes ? Tile::kMaxLanes : 1, units = (places + unit - 1) / unit;
    tile += std::to_string(std::min((units + parts[a] - 1) / parts[a] * unit, places));
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

}  // namespace natten::cpu::forward
