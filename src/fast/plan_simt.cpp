// Plans of kernels of multiply-adds: by tiles, and of the forward where queries are few.
#include <algorithm>
#include <bit>
#include <limits>

#include "fast/planner.h"

namespace natten::fast {

namespace {

/// What the plans of a platform aim at.
struct Limits {
  int threads;            ///< of a threadgroup; of few queries, at most
  int groups;             ///< on a CUDA multiprocessor at once: bounds registers to 65536 / (threads * groups)
  int channels_per_lane;  ///< of each array that a thread holds: they live in registers
  int run;                ///< positions per thread: each load from threadgroup memory serves so many
  int batch;              ///< logits per position at once; of few queries, keys that a thread reads at once
  int chunk_bytes;        ///< of threadgroup memory that streams use, or what simdgroups have to join
};

Limits limits(const Problem& p, const KernelRow& kernel, Platform platform) {
  const bool gradients = kernel.tile_class == TileClass::query_gradient || kernel.tile_class == TileClass::key_gradient;
  if (platform == Platform::metal) {
    // Not tuned on hardware. 128 threads, because a pipeline that uses many registers allows few more; half of the
    // 32 KB that Metal has, so that two groups share a core and one computes while the other loads.
    return {128, 1, gradients ? 8 : 16, 2, gradients ? 16 : 8, 16 * kKilobyte};
  }
  // Measured on an H200 in float32 (docs/laboratory/fast-tier.md). A run of 2 halves what is loaded from threadgroup
  // memory, a run of 4 wastes more at window borders than it saves. 8 channels per lane exchange too much, 32 spill.
  static constexpr Limits kLimits[] = {
      {128, 4, 16, 2, 13, 32 * kKilobyte},  // forward
      {128, 3, 16, 2, 16, 24 * kKilobyte},  // query_gradient
      {128, 4, 16, 1, 16, 32 * kKilobyte},  // key_gradient: four arrays, a run of 2 needs 218 registers
      {256, 2, 16, 2, 13, 32 * kKilobyte},  // split
  };
  // Windows of long rows have the longer halo, which larger tiles share.
  const bool is_long = kernel.tile_class == TileClass::forward && p.axes[2].kernel_size > 8;
  return kLimits[static_cast<int>(is_long ? TileClass::split : kernel.tile_class)];
}

/// Cost of bringing a position into threadgroup memory, in units of one query-key pair's arithmetic.
constexpr double kLoadCost = 4;

/// Of all the tiles of a problem: overhang and halo against each other.
double simt_cost(const Problem& p, const KernelRow& kernel, const Plan& plan) {
  const int positions = plan.positions(), row = plan.extent[2];
  const int simd_positions = 32 / plan.lanes * (plan.run_axis == 2 ? plan.run : 1);
  double tiles = 1, met = 1;
  for (int a = 0; a < kAxes; ++a) {
    tiles *= double(tiles_on(p, a, plan.extent[a], kernel.holds_keys()));
    met *= double(reach(p, a, plan.extent[a], kernel.holds_keys()));
  }
  // Threads of a simdgroup in different rows wait for each other.
  const double spread = row < simd_positions ? 1.0 + 0.25 * double(simd_positions) / row : 1.0;
  return tiles * (spread * positions * double(p.kernel_volume()) + kLoadCost * met);
}

/// Divides what a thread meets on axis 2 into equal batches with the least padding.
int choose_batch(std::int64_t columns, int most) {
  int best = 1;
  double best_cost = std::numeric_limits<double>::max();
  for (int batch = 1; batch <= most; ++batch) {
    const int batches = ceil_div64(columns, batch);
    const double cost = double(batches) * (batch + 1.5);  // 1.5: what every batch costs besides
    if (cost < best_cost) {
      best_cost = cost;
      best = batch;
    }
  }
  return best;
}

void choose_simt_chunk(const Problem& p, const KernelRow& kernel, int chunk_bytes, int shared_bytes, Plan& plan) {
  std::int64_t width = reach(p, 2, plan.extent[2], kernel.holds_keys());
  std::int64_t region =
      width * reach(p, 0, plan.extent[0], kernel.holds_keys()) * reach(p, 1, plan.extent[1], kernel.holds_keys());
  const int positions = plan.positions();
  std::int64_t chunk = std::max(1, chunk_bytes / plan.position_bytes);
  if (kernel.sums_bias(p)) {
    const std::int64_t columns = std::min<std::int64_t>(width, shared_bytes / 2 / (positions * 4));
    chunk = std::min(chunk, (shared_bytes - columns * positions * 4) / plan.position_bytes);
    if (columns < width) chunk = std::min(chunk, columns);
    plan.stage_columns = static_cast<int>(std::min(columns, chunk));
  }
  if (chunk > width) chunk -= chunk % width;  // whole rows
  plan.chunk = static_cast<int>(std::min(chunk, region));
}

/// Lanes such that each holds about `wanted` channels, and few of them are padding; and the channels per access.
void choose_lanes(Plan& plan, Platform platform, int wanted) {
  const bool halves = element_size(plan.a.type) == 2 && (plan.b.channels == 0 || element_size(plan.b.type) == 2);
  plan.vector = platform == Platform::cuda && halves ? 8 : 4;  // 16 bytes on CUDA, Metal's longest vector
  const int channels = std::max({plan.a.channels, plan.b.channels, 1});
  const int vectors = ceil_div(channels, plan.vector);
  double best = std::numeric_limits<double>::max();
  for (int lanes = 1; lanes <= 32; lanes *= 2) {
    const int slices = ceil_div(vectors, lanes);
    const int held = slices * plan.vector;
    if (lanes > 1 && lanes / 2 >= vectors) break;
    const double padding = double(slices) * lanes / vectors;
    const double distance = held > wanted ? double(held) / wanted : 1 + 0.1 * (double(wanted) / held - 1);
    const double cost = padding * (held > wanted * 3 / 2 ? 4 * distance : distance);
    if (cost < best) {
      best = cost;
      plan.lanes = lanes;
    }
  }
}

}  // namespace

std::optional<Plan> plan_simt(const Problem& p, const KernelRow& kernel, Target target, Plan plan) {
  const Limits limit = limits(p, kernel, target.platform);
  plan.threads = limit.threads;
  plan.run = limit.run;
  plan.groups = limit.groups;
  choose_lanes(plan, target.platform, limit.channels_per_lane);
  override_from_environment(plan);
  if (!kernel.has_tiles()) return plan;
  finish_streams(kernel, plan);
  choose_extent(p, kernel, simt_cost, plan);
  plan.batch = choose_batch(p.axes[2].kernel_size + (plan.run_axis == 2 ? plan.run - 1 : 0), limit.batch);
  choose_simt_chunk(p, kernel, limit.chunk_bytes, most_shared_bytes(target.platform), plan);
  override_from_environment(plan);
  return plan;
}

std::optional<Plan> plan_decode(const Problem& p, const KernelRow& kernel, Target target, Plan plan) {
  // Each query reads the keys of its window anew, and alone keeps its threadgroup busy.
  constexpr std::int64_t kMostQueries = 4, kMostKeys = std::int64_t(1) << 30;  // of a window: indices are 32-bit
  if (p.queries() > kMostQueries || p.kernel_volume() > kMostKeys) return std::nullopt;
  // Metal: a pipeline that uses many registers allows few threads. CUDA: 128 registers, and 64 KB on their way from
  // memory to a multiprocessor. Neither was tuned on hardware.
  const Limits limit = target.platform == Platform::metal ? Limits{256, 1, 8, 1, 2, 16 * kKilobyte}
                                                          : Limits{512, 1, 16, 1, 4, 16 * kKilobyte};
  plan.batch = limit.batch;
  plan.run_axis = 2;
  choose_lanes(plan, target.platform, limit.channels_per_lane);
  override_from_environment(plan);
  finish_streams(kernel, plan);
  plan.position_bytes = 4 * (2 + plan.b.slices * plan.vector * plan.lanes);
  // Simdgroups such that no thread is without a key that is there, and what they have to join fits.
  const std::int64_t keys = reach(p, 0, 1, false) * reach(p, 1, 1, false) * reach(p, 2, 1, false);
  const std::int64_t at_once = std::int64_t(32 / plan.lanes) * plan.batch;
  const std::int64_t most = std::min(limit.threads / 32, limit.chunk_bytes / plan.position_bytes);
  const std::int64_t useful = std::clamp<std::int64_t>(keys / at_once, 1, most);
  plan.threads = 32 * static_cast<int>(std::bit_floor(std::uint64_t(useful)));
  override_from_environment(plan);
  if (plan.run != 1 || plan.positions() != 1) return std::nullopt;  // an override that suits other engines
  plan.slots = plan.threads / plan.lanes;
  plan.chunk = plan.threads / 32;
  return plan;
}

}  // namespace natten::fast
