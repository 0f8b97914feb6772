#include "probe/probe.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <vector>

#include "native/cpu/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "probe/probe.cpp"
#include "hwy/foreach_target.h"
// Highway asks that these come after foreach_target.h.
#include "hwy/highway.h"
#include "native/cpu/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// Chains enough to hide the latency of a multiply-add on the widest cores (4 cycles, 4 per cycle); AVX2 has 16
// registers in all.
constexpr int kChains = HWY_TARGET == HWY_AVX2 ? 12 : 16;

std::int64_t float_lanes_of_target() {
  return static_cast<std::int64_t>(hn::Lanes(hn::ScalableTag<float>()));
}

// `sink` keeps the compiler from dropping the operations.
double fma_burst_of_target(std::int64_t rounds, float* sink) {
  const hn::ScalableTag<float> d;
  const auto factor = hn::Set(d, 0.999F), term = hn::Set(d, 1e-3F);
  decltype(hn::Zero(d)) chains[kChains];
  for (int i = 0; i < kChains; ++i) chains[i] = hn::Set(d, 1.0F + static_cast<float>(i) * *sink);
  for (std::int64_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < kChains; ++i) chains[i] = hn::MulAdd(chains[i], factor, term);
  }
  auto sum = hn::Zero(d);
  for (int i = 0; i < kChains; ++i) sum = hn::Add(sum, chains[i]);
  *sink = hn::GetLane(hn::SumOfLanes(d, sum));
  return 2.0 * kChains * static_cast<double>(hn::Lanes(d)) * static_cast<double>(rounds);
}

}  // namespace
}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace natten::cpu {
namespace {

HWY_EXPORT(float_lanes_of_target);
HWY_EXPORT(fma_burst_of_target);

constexpr int kItemsPerThread = 8;      // a late worker is then not waited for
constexpr double kWorthThreads = 1e15;  // of parallel_for's estimate: never serial
constexpr std::int64_t kCopyItem = std::int64_t{1} << 20;

template <class Task>
double seconds(Task&& task) {
  const auto start = std::chrono::steady_clock::now();
  task();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

std::int64_t float_lanes() {
  return NATTEN_DISPATCH(float_lanes_of_target)();
}

double fma_burst(std::int64_t rounds) {
  float sink = 0.0F;
  const double operations = NATTEN_DISPATCH(fma_burst_of_target)(rounds, &sink);
  return sink == -1.0F ? 0 : operations;
}

double fma_rate(std::int64_t rounds) {
  const std::int64_t items = std::int64_t{kItemsPerThread} * thread_count();
  std::vector<double> operations(items);
  const double elapsed = seconds([&] {
    parallel_for(items, kWorthThreads, [&](std::int64_t item) {
      operations[item] = fma_burst(std::max<std::int64_t>(1, rounds / kItemsPerThread));
    });
  });
  double total = 0;
  for (double count : operations) total += count;
  return total / elapsed;
}

double copy_rate(std::int64_t bytes, int repeats) {
  // Written in full, so that every page exists before the clock starts.
  std::vector<char> from(bytes, 1), to(bytes, 2);
  const std::int64_t items = (bytes + kCopyItem - 1) / kCopyItem;
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < repeats; ++i) {
    best = std::min(best, seconds([&] {
                      parallel_for(items, kWorthThreads, [&](std::int64_t item) {
                        const std::int64_t start = item * kCopyItem;
                        std::memcpy(to.data() + start, from.data() + start, std::min(kCopyItem, bytes - start));
                      });
                    }));
  }
  return 2.0 * static_cast<double>(bytes) / best;
}

}  // namespace natten::cpu
#endif  // HWY_ONCE
