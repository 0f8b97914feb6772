// Plans of kernels on Hopper's warpgroup instructions (bodies/warpgroup_*.h).
#include <algorithm>
#include <limits>

#include "fast/planner.h"

namespace natten::fast {

namespace {

/// Whether the kernel can run on Hopper's warpgroup instructions (bodies/warpgroup_*.h).
bool suits_warpgroup(const Problem& p, const KernelRow& kernel, Target target) {
  const auto fits = [](std::int64_t channels) { return channels % 8 == 0 && channels <= 256; };
  return target.platform == Platform::cuda && target.capability / 10 == 9 && element_size(p.query_type) == 2 &&
         p.key_type == p.query_type && p.value_type == p.query_type && fits(p.head_dim) && fits(p.value_dim) &&
         (!p.has_rpb || !kernel.holds_keys() || has_even_queries(p));
}

/// Axes of more than one token.
int proper_axes(const Problem& p) {
  return static_cast<int>(std::count_if(p.axes.begin(), p.axes.end(), [](const Axis& a) { return a.length > 1; }));
}

/// From how many keys of a window on it is faster than mma.sync then, as measured on an H200
/// (docs/laboratory/fast-tier.md).
std::int64_t least_window(const Problem& p, TileClass kernel) {
  const std::int64_t channels = std::max(p.head_dim, p.value_dim);
  const bool forward = kernel == TileClass::forward;
  if (channels > 128) return 0;
  if (p.has_rpb) {  // of which a pair takes mma.sync more
    if (kernel == TileClass::key_gradient) return channels <= 32 ? 40 : 0;
    if (channels <= 32) return 200;
    if (forward) return channels % 64 == 0 ? 60 : 200;  // of whole panels
    return channels <= 64 ? 60 : 0;
  }
  if (channels <= 32) return kLongWindow;
  if (proper_axes(p) < 2) return forward ? 63 : 31;
  return forward ? 65 : 0;
}

/// The shapes of the table of warpgroup plans, each with the reason.
struct WarpgroupShape {
  int warpgroups, producers, groups, block, stages, repeat;
};

/// Whether registers hold the sums of both gradients.
bool sums_together(const Problem& p) {
  return ceil_div64(p.head_dim, 16) + ceil_div64(p.value_dim, 16) <= 320 / 16;
}
WarpgroupShape shape_of_gradient(const Problem& p, bool keys) {
  const std::int64_t channels = std::max(p.head_dim, p.value_dim), both = p.head_dim + p.value_dim;
  // Of 256 channels shared memory has room for what one warpgroup holds and two blocks of 64, or what two hold and
  // blocks of 32, which pays where one axis' neighbours meet the same. Of one gradient after the other likewise.
  const bool one_by_one = keys && !sums_together(p);
  if (both > 384 && (one_by_one || (!keys && proper_axes(p) > 1))) return {1, 128, 1, 64, 2, 1};
  if (one_by_one) return {1, 128, 1, 32, 6, 1};
  if (channels > 144 || (keys && both > 256)) return {2, 128, 1, 32, 6, 1};
  // Logits, products and two sums leave registers for 64 positions at once.
  if (channels > 64 || p.kernel_volume() >= kLongWindow) return {2, 128, 1, 64, 6, 1};
  // Of short windows the next tile's positions come in while results are stored.
  if (channels > 32) return {2, 128, 1, 64, 6, 2};
  return {1, 32, 2, 64, 4, 4};
}
WarpgroupShape shape_of_forward(const Problem& p) {
  const std::int64_t channels = std::max(p.head_dim, p.value_dim);
  // Sums of 192 or 256 channels leave registers for 96 or 64 keys at once, if queries are in shared memory.
  if (channels > 192) return {2, 128, 1, 64, 2, 1};
  if (channels > 128) return {2, 128, 1, 96, 2, 1};
  // The most registers that two warpgroups can have, which 128 keys at once need; their stages fill shared memory.
  if (channels > 64) return {2, 128, 1, 128, 3, 1};
  // A third warpgroup hides more of the softmax, as soon as accumulators leave registers for it.
  if (p.kernel_volume() >= kLongWindow && p.axes[0].length > 1) return {3, 128, 1, 96, 4, 1};
  if (p.kernel_volume() >= kLongWindow) return {2, 128, 1, 128, 4, 1};
  // Short windows are prologue and epilogue: threadgroups of one warpgroup and one loading warp, to overlap them.
  if (channels > 32) return {1, 32, 3, 64, 3, 4};
  return {1, 32, 3, 64, 4, 4};
}

/// What a tile of `extent` positions meets on an axis, on average over (some of) the tiles: a key near a border is met
/// by more queries than others, and one past it by fewer.
double mean_met(const Problem& p, int a, int extent, bool keys) {
  constexpr int kMostTiles = 256;
  const AxisConstants c = axis_constants(p.axes[a]);
  const AxisGroup group = keys ? group_of_keys(c, rows_of(p, a), 0) : group_of_queries(c, rows_of(p, a), 0);
  const auto met_by = [&](int i) { return keys ? queries_of_key(c, group, i) : keys_of_query(c, group, i); };
  const int positions = keys ? group.keys : group.queries, tiles = ceil_div(positions, extent);
  const int count = std::min(tiles, kMostTiles);
  double sum = 0;
  for (int i = 0; i < count; ++i) {
    const int first = static_cast<int>(std::int64_t(tiles) * i / count) * extent;
    sum += met_by(std::min(first + extent, positions) - 1).end - met_by(first).start;
  }
  return sum / count;
}

/// What a box of 64 positions multiplies, with the axis, chosen here, on which the warpgroups' boxes then lie side by
/// side. The mask has a channel for each coordinate of a box, 16 in all.
double warpgroup_cost(const Problem& p, const KernelRow& kernel, Plan& plan) {
  constexpr int kMaskChannels = 16;
  constexpr double kTileCost = 128;  // queries, results, indices: in keys that a warpgroup multiplies
  const bool keys = kernel.holds_keys();
  const int proper = proper_axes(p);
  double met = 1, best = std::numeric_limits<double>::max();
  for (int a = 0; a < kAxes; ++a) met *= mean_met(p, a, plan.extent[a], keys);
  for (int split = 0; split < kAxes; ++split) {
    if (p.axes[split].length == 1 && proper > 0) continue;  // its coordinates tell nothing
    int channels = 0;
    double tiles = 1;
    bool outside = false;
    for (int a = 0; a < kAxes; ++a) {
      const int all = plan.extent[a] * (a == split ? plan.warpgroups : 1);
      outside = outside || (p.axes[a].length == 1 && all > 1);
      channels += p.axes[a].length == 1 ? 0 : std::max(2, plan.extent[a]);
      tiles *= double(tiles_on(p, a, all, keys));
    }
    if (outside || (proper > 1 && channels > kMaskChannels)) continue;
    const double cost = tiles * (met + kTileCost);
    if (cost < best) {
      best = cost;
      plan.split_axis = split;
    }
  }
  return best;
}

std::optional<Plan> plan_of_shape(const Problem& p, const KernelRow& kernel, const WarpgroupShape& shape, Plan plan) {
  const bool keys = kernel.holds_keys(), forward = kernel.tile_class == TileClass::forward;
  plan.run = 2;
  plan.lanes = 4;
  plan.vector = 8;
  plan.warpgroups = shape.warpgroups;
  plan.producers = shape.producers;
  plan.groups = shape.groups;
  plan.block = shape.block;
  plan.stages = shape.stages;
  plan.repeat = shape.repeat;
  plan.ping_pong = forward;
  // Of a span an axis of keys may have one query.
  const auto has_run = [&](int a) { return (p.spans && !keys ? p.queries(a) : p.axes[a].length) > 1; };
  plan.run_axis = has_run(1) ? 1 : has_run(2) ? 2 : 0;
  plan.numbers = 4 * (kernel.streamed_scalars() + p.has_rpb);
  plan.hold_shared = std::max(p.head_dim, p.value_dim) > 128;
  override_from_environment(plan);
  plan.threads = 128;  // of one warpgroup
  choose_extent(p, kernel, warpgroup_cost, plan);
  override_from_environment(plan);
  if (!forward) {  // beside the sums of both gradients registers hold up to 128 channels more, beside one's up to 256
    const int width = plan.a.width + plan.b.width;
    plan.wide = keys && !sums_together(p);
    plan.hold_shared = width > (keys ? 128 : 256) ? 2 : 0;
  }
  plan.warpgroup_extent = plan.extent;
  if (plan.extent[0] * plan.extent[1] * plan.extent[2] != 64) return std::nullopt;
  plan.extent[plan.split_axis] *= plan.warpgroups;
  plan.threads = 128 * plan.warpgroups + plan.producers;
  if (plan.warpgroups != 2) plan.ping_pong = 0;
  finish_streams(kernel, plan);
  plan.position_bytes = 0;  // of what is declared

  bool coincide = !p.spans;  // the windows of a tile's positions; a span may begin anywhere in those that share one
  int channels = 0;
  std::int64_t region = 1;
  for (int a = 0; a < kAxes; ++a) {
    const Axis& axis = p.axes[a];
    const bool trivial = axis.length == 1;
    const bool has_borders = keys && !axis.is_circular;  // where a tile may lie at both of them
    const std::int64_t met = reach(p, a, plan.extent[a], keys) + (has_borders ? axis.kernel_size / 2 : 0);
    plan.reach[a] = static_cast<int>(has_borders ? std::min(met, p.queries(a)) : met);
    region *= plan.reach[a];
    plan.mask_channels[a] = trivial ? 0 : std::max(2, plan.warpgroup_extent[a]);
    channels += plan.mask_channels[a];
    coincide = coincide && (trivial || (!axis.is_causal && axis.stride == 1 && axis.gna_stride % plan.extent[a] == 0));
  }
  // Then there is nothing to mask, if blocks divide the window too.
  plan.mask = proper_axes(p) < 2 ? MaskKind::row : MaskKind::units;
  if (coincide && !keys && p.kernel_volume() % plan.block == 0) plan.mask = MaskKind::none;
  constexpr std::int64_t kMostRegion = 1 << 19;
  if ((plan.mask == MaskKind::units && channels > 16) || region > kMostRegion) return std::nullopt;
  constexpr int kRegisters = 65536;                    // of a multiprocessor
  if (plan.producers == 128 && plan.warpgroups > 1) {  // a warpgroup, which can hand registers on
    const int launched = kRegisters / (plan.threads * plan.groups) / 8 * 8;
    plan.producer_registers = plan.warpgroups > 2 ? 40 : 56;
    plan.consumer_registers = std::min(
        240, (launched * plan.threads - plan.producer_registers * plan.producers) / (128 * plan.warpgroups) / 8 * 8);
  }
  if (!forward && (plan.block > 64 || (plan.hold_shared && plan.producers != 128))) return std::nullopt;
  constexpr int kMostBytes = 227 * kKilobyte;
  if (p.has_rpb) {
    constexpr std::int64_t kMostEntries = kMostBytes / 4;
    const std::int64_t tables = keys ? p.heads / p.kv_heads : 1;
    // Pairs of a tile that do not meet are so far apart as two of its positions, more than those that do.
    std::int64_t margin = 0;
    for (int a = 0; a < kAxes; ++a) {
      margin = margin * (2 * p.axes[a].kernel_size - 1) +
               std::int64_t(plan.extent[a] - 1) * (keys ? 1 : axis_constants(p.axes[a]).step);
    }
    if (tables * (bias_entries(p) + 2 * margin) > kMostEntries) return std::nullopt;
    plan.bias_margin = static_cast<int>(margin);
    plan.staged_bias = static_cast<int>(tables * (bias_entries(p) + 2 * margin));
    if (kernel.sums_bias(p)) reserve_bias_sums(p, plan);
  }
  while (plan.stages > 2 && plan.dynamic_bytes() > kMostBytes / plan.groups) --plan.stages;
  if (plan.dynamic_bytes() > kMostBytes / plan.groups) return std::nullopt;
  return plan;
}

}  // namespace

std::optional<Plan> plan_warpgroup(const Problem& p, const KernelRow& kernel, Target target, Plan plan) {
  const int wanted = override_of(engine_name(Engine::warpgroup));
  if (!suits_warpgroup(p, kernel, target) || (wanted < 0 && p.kernel_volume() < least_window(p, kernel.tile_class)))
    return std::nullopt;
  WarpgroupShape shape =
      kernel.tile_class == TileClass::forward ? shape_of_forward(p) : shape_of_gradient(p, kernel.holds_keys());
  std::optional<Plan> found = plan_of_shape(p, kernel, shape, plan);
  if (!kernel.sums_bias(p)) return found;
  // Each warp has a table of sums: perhaps there is room for those of one warpgroup, and for smaller blocks.
  for (const int block : {shape.block, 32}) {
    if (found) break;
    shape.warpgroups = 1;
    shape.block = block;
    found = plan_of_shape(p, kernel, shape, plan);
  }
  return found;
}

}  // namespace natten::fast
