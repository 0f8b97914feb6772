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

/// Channels of both gradients, padded, whose sums registers hold.
constexpr int kSumsTogether = 320;

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

struct WarpgroupShape {
  int warpgroups, producers, groups, block, stages, repeat;
};

/// The shapes: of the first row that holds. Stages become as many as shared memory has room for.
struct ShapeRow {
  TileClass kernel;
  int channels, both;  ///< at most: of an array, and of A and B together, both padded
  int keys;            ///< of a window, at least
  int axes;            ///< of more than one token, at least
  WarpgroupShape shape;
};
constexpr TileClass kForward = TileClass::forward, kQuery = TileClass::query_gradient, kKeys = TileClass::key_gradient;
constexpr ShapeRow kShapes[] = {
    // A third warpgroup hides more of the softmax, as soon as accumulators leave registers for it.
    {kForward, 64, 128, kLongWindow, 3, {3, 128, 1, 96, 4, 1}},
    // The most registers that two warpgroups can have, which 128 keys at once need; their stages fill shared memory.
    {kForward, 64, 128, kLongWindow, 0, {2, 128, 1, 128, 4, 1}},
    // Short windows are prologue and epilogue: threadgroups of one warpgroup and one loading warp, to overlap them.
    {kForward, 32, 64, 0, 0, {1, 32, 3, 64, 4, 4}},
    {kForward, 64, 128, 0, 0, {1, 32, 3, 64, 3, 4}},
    {kForward, 128, 256, 0, 0, {2, 128, 1, 128, 3, 1}},
    // Sums of 192 or 256 channels leave registers for 96 or 64 keys at once, if queries are in shared memory.
    {kForward, 192, 384, 0, 0, {2, 128, 1, 96, 2, 1}},
    {kForward, 256, 512, 0, 0, {2, 128, 1, 64, 2, 1}},

    // Logits, products and a sum leave registers for 64 positions at once. Of short windows the next tile's positions
    // come in while results are stored.
    {kQuery, 64, 128, kLongWindow, 0, {2, 128, 1, 64, 6, 1}},
    {kQuery, 32, 64, 0, 0, {1, 32, 2, 64, 4, 4}},
    {kQuery, 64, 128, 0, 0, {2, 128, 1, 64, 6, 2}},
    {kQuery, 144, 288, 0, 0, {2, 128, 1, 64, 6, 1}},
    // What is held fills shared memory: blocks of 32 leave room for more stages.
    {kQuery, 256, 384, 0, 0, {2, 128, 1, 32, 6, 1}},
    // Or what one warpgroup holds and two blocks of 64, where a tile of two meets much more.
    {kQuery, 256, 512, 0, 2, {1, 128, 1, 64, 2, 1}},
    {kQuery, 256, 512, 0, 0, {2, 128, 1, 32, 6, 1}},

    {kKeys, 64, 128, kLongWindow, 0, {2, 128, 1, 64, 6, 1}},
    {kKeys, 32, 64, 0, 0, {1, 32, 2, 64, 4, 4}},
    {kKeys, 64, 128, 0, 0, {2, 128, 1, 64, 6, 2}},
    {kKeys, 144, 256, 0, 0, {2, 128, 1, 64, 6, 1}},
    // Beside both sums registers hold 32 positions at once; one sum after the other is faster with one warpgroup.
    {kKeys, 256, kSumsTogether, 0, 0, {2, 128, 1, 32, 6, 1}},
    {kKeys, 256, 384, 0, 0, {1, 128, 1, 32, 6, 1}},
    {kKeys, 256, 512, 0, 0, {1, 128, 1, 64, 2, 1}},
};

const WarpgroupShape& warpgroup_shape(const Problem& p, TileClass kernel, const Plan& plan) {
  const auto holds = [&](const ShapeRow& row) {
    return row.kernel == kernel && std::max(plan.a.width, plan.b.width) <= row.channels &&
           plan.a.width + plan.b.width <= row.both && p.kernel_volume() >= row.keys && proper_axes(p) >= row.axes;
  };
  return std::find_if(std::begin(kShapes), std::end(kShapes), holds)->shape;
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
    plan.wide = keys && width > kSumsTogether;
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
  // Products take 16 positions at a time, and a bias gradient's lanes a key each.
  const bool takes_block = plan.block % 16 == 0 && (!kernel.sums_bias(p) || plan.block <= 32 || plan.block % 32 == 0);
  if (!takes_block) refuse(plan);
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
  WarpgroupShape shape = warpgroup_shape(p, kernel.tile_class, plan);
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
