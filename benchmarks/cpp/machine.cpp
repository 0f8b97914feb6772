#include "machine.h"

#include <time.h>

#include <chrono>
#include <cstring>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "machine.cpp"
#include "hwy/foreach_target.h"
// Highway asks that these come after foreach_target.h.
#include "hwy/highway.h"
#include "native/cpu/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace natten::bench::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Twelve chains hide the latency of four cycles of two units. Returns the operations done.
double run_multiply_adds(std::int64_t rounds, float* sink) {
  const hn::ScalableTag<float> d;
  const auto a = hn::Set(d, 1.0f - 1e-7f), b = hn::Set(d, 1e-7f);
  auto next = [&, i = 0]() mutable { return hn::Iota(d, static_cast<float>(++i)); };  // chains that differ
  auto x0 = next(), x1 = next(), x2 = next(), x3 = next(), x4 = next(), x5 = next();
  auto x6 = next(), x7 = next(), x8 = next(), x9 = next(), x10 = next(), x11 = next();
  for (std::int64_t i = 0; i < rounds; ++i) {
    x0 = hn::MulAdd(x0, a, b), x1 = hn::MulAdd(x1, a, b), x2 = hn::MulAdd(x2, a, b);
    x3 = hn::MulAdd(x3, a, b), x4 = hn::MulAdd(x4, a, b), x5 = hn::MulAdd(x5, a, b);
    x6 = hn::MulAdd(x6, a, b), x7 = hn::MulAdd(x7, a, b), x8 = hn::MulAdd(x8, a, b);
    x9 = hn::MulAdd(x9, a, b), x10 = hn::MulAdd(x10, a, b), x11 = hn::MulAdd(x11, a, b);
  }
  const auto sum = hn::Add(hn::Add(hn::Add(x0, x1), hn::Add(x2, x3)), hn::Add(hn::Add(x4, x5), hn::Add(x6, x7)));
  *sink = hn::GetLane(hn::SumOfLanes(d, hn::Add(sum, hn::Add(hn::Add(x8, x9), hn::Add(x10, x11)))));
  return 24.0 * static_cast<double>(rounds) * static_cast<double>(hn::Lanes(d));
}

}  // namespace natten::bench::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace natten::bench {

HWY_EXPORT(run_multiply_adds);

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double thread_seconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double fma_peak() {
  constexpr std::int64_t kRounds = 200000;  // about a millisecond
  volatile float kept;
  float sink;
  const double start = thread_seconds();
  const double operations = NATTEN_DISPATCH(run_multiply_adds)(kRounds, &sink);
  const double elapsed = thread_seconds() - start;
  kept = sink;
  (void)kept;
  return operations / elapsed;
}

double copy_bandwidth() {
  constexpr std::size_t kBytes = std::size_t{128} << 20;
  static std::vector<char> from(kBytes, 1), to(kBytes, 2);
  const double start = thread_seconds();
  std::memcpy(to.data(), from.data(), kBytes);
  return 2.0 * kBytes / (thread_seconds() - start);
}

}  // namespace natten::bench
#endif  // HWY_ONCE
