// Plans of kernels on matrix units (bodies/matrix.h).
#include <algorithm>
#include <bit>
#include <limits>

#include "fast/planner.h"

namespace natten::fast {

namespace {

bool suits_matrix(const Problem& p, const KernelRow& kernel, Target target) {
  // Sums of 256 channels are 128 registers of a thread, which is all that Apple's GPUs have. In float32 they do
  // not pay on NVIDIA's: forward and backward take 2.8 (192 channels) and 3.7 times as long as on multiply-adds.
  const std::int64_t most = target.platform == Platform::metal || element_size(p.query_type) == 4 ? 128 : 256;
  const auto fits = [&](std::int64_t channels) { return channels >= 8 && channels <= most; };
  const bool has_type = target.platform == Platform::metal || target.tf32 || element_size(p.query_type) == 2;
  return has_type && p.key_type == p.query_type && p.value_type == p.query_type && fits(p.head_dim) &&
         fits(p.value_dim) && (!p.has_rpb || !kernel.holds_keys() || has_even_queries(p));
}

/// What warps multiply, with what loading costs. A warp skips what lies before and after its own span of the region,
/// which is a flat list of rows.
double matrix_cost(const Problem& p, const KernelRow& kernel, const Plan& plan) {
  constexpr double kLoad = 0.5;     // bringing a position in, for all warps of a tile, in those that a warp multiplies
  constexpr double kTileCost = 64;  // queries, results, indices; the same unit
  const std::array<int, 3> warp = plan.simd_extent();
  double tiles = 1, region[kAxes], span[kAxes];
  for (int a = 0; a < kAxes; ++a) {
    tiles *= double(tiles_on(p, a, plan.extent[a], kernel.holds_keys()));
    region[a] = double(reach(p, a, plan.extent[a], kernel.holds_keys()));
    span[a] = double(reach(p, a, warp[a], kernel.holds_keys()));
  }
  const double met = region[0] * region[1] * region[2];
  const double of_warp =
      std::min(met, ((span[0] - 1) * region[1] + span[1] - 1) * region[2] + span[2] + plan.block / 2);
  return tiles * (of_warp + kLoad * met + kTileCost);
}

/// Streamed positions for which there is threadgroup memory.
int most_rows(int most_shared, const Plan& plan) {
  return (most_shared - 4 * (plan.stage_columns * plan.positions() + plan.staged_bias)) / plan.position_bytes;
}

/// Chunks of equal size, and the words of streamed positions. False if the region is too large for packed coordinates,
/// or threadgroup memory too small.
bool choose_matrix_chunk(const Problem& p, const KernelRow& kernel, int most_bytes, int most_shared, Plan& plan) {
  std::int64_t region = 1;
  int bits = 0;
  plan.mask = p.is_circular() ? MaskKind::coordinates : MaskKind::bits;  // around an axis a position is met in turns
  constexpr int kMostBits = 31;                                          // one is for extra tokens
  const auto own_bits = [&](int a) { return plan.extent[a] > 1 ? plan.extent[a] : 0; };
  if (own_bits(0) + own_bits(1) + own_bits(2) > kMostBits) plan.mask = MaskKind::coordinates;
  for (int a = 0; a < kAxes; ++a) {
    const std::int64_t met = reach(p, a, plan.extent[a], kernel.holds_keys());
    plan.bits[a] = plan.mask == MaskKind::bits ? own_bits(a) : std::bit_width(std::uint64_t(met)) + 1;
    bits += plan.bits[a] + 1;
    region *= met;
  }
  constexpr int kWordBits = 32, kMostRegion = 1 << 19;
  constexpr int kMostRows = 128;
  if ((plan.mask == MaskKind::coordinates && bits > kWordBits) || region > kMostRegion) return false;
  // Each tile clears and adds up whole tables. Those of long causal windows are beyond what a tile can meet.
  if (kernel.sums_bias(p) && bias_entries(p) > 8 * region) return false;
  const int room = most_rows(most_shared, plan);
  if (room < plan.block) return false;
  const int fitting = std::min(most_bytes / plan.position_bytes, room) / plan.block * plan.block;
  const int rows = std::clamp(fitting, plan.block, kMostRows);
  const int chunks = ceil_div64(region, rows);
  plan.chunk = ceil_div64(ceil_div64(region, chunks), plan.block) * plan.block;
  return true;
}

/// What the plans of a platform aim at; bytes of the streams, so that several threadgroups share a multiprocessor, or
/// two a core.
struct MatrixLimits {
  int threads, groups, block, chunk_bytes;
};
MatrixLimits matrix_limits(const Problem& p, const KernelRow& kernel, Platform platform, bool wide) {
  const std::int64_t channels = std::max(p.head_dim, p.value_dim);
  const int width = channels <= 32 ? 0 : channels <= 64 ? 1 : 2;
  const int role = static_cast<int>(kernel.tile_class);  // forward or a gradient
  // Not tuned on hardware: as MLX's own attention, four simdgroups, and half of the 32 KB.
  if (platform == Platform::metal) return {128, 1, width == 2 || role == 2 ? 16 : 32, 16 * kKilobyte};
  // Measured on an H200: threadgroups per multiprocessor hide latency until registers spill.
  constexpr int kBytes = 36 * kKilobyte;
  // Where a bias is summed more of a thread's numbers are alive, and each simdgroup has a table. Fewer groups were
  // measured up to 32 channels alone.
  constexpr int kBiasGroups[3] = {4, 3, 2};
  if (kernel.sums_bias(p)) return {128, kBiasGroups[width], width == 2 ? 16 : 32, kBytes};
  const bool half = element_size(p.query_type) == 2;
  // Of many channels and keys loading is what counts, and larger tiles load less.
  if (width == 2 && (!half || p.kernel_volume() >= kLongWindow)) {
    if (wide) return {256, 1, 32, kBytes};
    return {256, half && role == 0 ? 2 : 1, role == 2 ? 16 : 32, kBytes};
  }
  constexpr int kGroups[3][3] = {{6, 5, 4}, {5, 3, 3}, {4, 2, 2}};
  constexpr int kFloatGroups[2][3] = {{4, 4, 3}, {3, 3, 2}};  // twice the registers for what is held, and the memory
  return {128, half ? (wide ? 2 : kGroups[width][role]) : kFloatGroups[width][role], 32, kBytes};
}

}  // namespace

std::optional<Plan> plan_matrix(const Problem& p, const KernelRow& kernel, Target target, Plan plan) {
  if (!suits_matrix(p, kernel, target)) return std::nullopt;
  const bool sums_bias = kernel.sums_bias(p);
  plan.wide = std::max(p.head_dim, p.value_dim) > 128;
  const MatrixLimits limits = matrix_limits(p, kernel, target.platform, plan.wide);
  plan.run = 2;
  plan.lanes = 4;
  plan.vector = 8;
  plan.threads = limits.threads;
  plan.groups = limits.groups;
  plan.block = limits.block;
  override_from_environment(plan);
  constexpr int kMostBlock = 64;  // a bit of `met` (bodies/matrix.h) for each sum of a thread
  if (plan.block > (sums_bias ? 32 : kMostBlock)) refuse(plan);
  finish_streams(kernel, plan);
  plan.words = p.has_rpb && kernel.reads(Array::rpb) ? 2 : 1;
  plan.position_bytes += 4 * plan.words + 2 * 8;  // and places in both arrays
  constexpr int kMostStaged = 1024;  // of a bias table; Apple's threadgroup memory is for the sums of its gradient
  if (plan.words > 1 && bias_entries(p) <= kMostStaged && !(target.platform == Platform::metal && sums_bias)) {
    plan.staged_bias = static_cast<int>(bias_entries(p));
  }
  choose_extent(p, kernel, matrix_cost, plan);
  override_from_environment(plan);  // the extent, from which the rest follows
  const int most_shared = most_shared_bytes(target.platform);
  if (sums_bias) {
    if (bias_entries(p) > most_shared) return std::nullopt;
    reserve_bias_sums(p, plan);
    if (most_rows(most_shared, plan) < plan.block) {
      plan.block = 16;
      reserve_bias_sums(p, plan);
    }
  }
  if (!choose_matrix_chunk(p, kernel, limits.chunk_bytes, most_shared, plan)) return std::nullopt;
  const int block = plan.block;
  override_from_environment(plan);
  if (plan.run != 2 || plan.lanes != 4 || plan.vector != 8 || plan.block != block || plan.chunk % block != 0) {
    refuse(plan);
  }
  return plan;
}

}  // namespace natten::fast
