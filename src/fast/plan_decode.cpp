// Plans of the forward where queries are few.
#include <algorithm>
#include <bit>

#include "fast/planner.h"

namespace natten::fast {

namespace {

/// Each query reads the keys of its window anew, and alone keeps its threadgroup busy.
constexpr std::int64_t kMostQueries = 4;
constexpr std::int64_t kMostKeys = std::int64_t(1) << 30;  // of a window: indices are 32-bit

struct Limits {
  int threads;            ///< of a threadgroup, at most
  int channels_per_lane;  ///< of a key: with a batch of them, in registers
  int batch;              ///< keys that a thread reads at once
};

Limits limits(Platform platform) {
  // Metal: a pipeline that uses many registers allows few threads. CUDA: 128 registers, and 64 KB on their way from
  // memory to a multiprocessor. Neither was tuned on hardware.
  return platform == Platform::metal ? Limits{256, 8, 2} : Limits{512, 16, 4};
}

}  // namespace

std::optional<Plan> plan_decode(const Problem& p, const KernelRow& kernel, Target target, Plan plan) {
  if (p.queries() > kMostQueries || p.kernel_volume() > kMostKeys) return std::nullopt;
  const Limits limit = limits(target.platform);
  plan.batch = limit.batch;
  plan.run_axis = 2;
  choose_lanes(plan, target.platform, limit.channels_per_lane);
  override_from_environment(plan);
  finish_streams(kernel, plan);
  plan.position_bytes = 4 * (2 + plan.b.slices * plan.vector * plan.lanes);
  // Simdgroups such that no thread is without a key that is there, and what they have to join fits.
  const std::int64_t keys = reach(p, 0, 1, false) * reach(p, 1, 1, false) * reach(p, 2, 1, false);
  const std::int64_t at_once = std::int64_t(32 / plan.lanes) * plan.batch;
  const std::int64_t most = std::min<std::int64_t>(limit.threads / 32, 16 * kKilobyte / plan.position_bytes);
  const std::int64_t useful = std::clamp<std::int64_t>(keys / at_once, 1, most);
  plan.threads = 32 * static_cast<int>(std::bit_floor(std::uint64_t(useful)));
  override_from_environment(plan);
  if (plan.run != 1 || plan.positions() != 1) return std::nullopt;  // an override that suits other engines
  plan.slots = plan.threads / plan.lanes;
  plan.chunk = plan.threads / 32;
  return plan;
}

}  // namespace natten::fast
