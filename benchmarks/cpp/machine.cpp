#include "machine.h"

#include <time.h>

#include <chrono>
#include <cstring>
#include <vector>

#include "probe/probe.h"

namespace natten::bench {

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double thread_seconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double fma_peak() {
  constexpr std::int64_t kRounds = 150000;  // about a millisecond
  const double start = thread_seconds();
  const double operations = cpu::fma_burst(kRounds);
  return operations / (thread_seconds() - start);
}

double copy_bandwidth() {
  constexpr std::size_t kBytes = std::size_t{128} << 20;
  static std::vector<char> from(kBytes, 1), to(kBytes, 2);
  const double start = thread_seconds();
  std::memcpy(to.data(), from.data(), kBytes);
  return 2.0 * kBytes / (thread_seconds() - start);
}

}  // namespace natten::bench
