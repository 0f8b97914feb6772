// From which size on is a second thread worth waking? The numbers behind kSerialFlops in tuning.h: forward passes of
// growing size on one thread and on two, each after the workers went to sleep.
//
// pool_bench [repeats]; on a busy Linux machine: sudo nice -n -10 pool_bench
#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "machine.h"
#include "native/cpu/kernels.h"
#include "native/cpu/target.h"
#include "native/cpu/thread_pool.h"

namespace natten::bench {
namespace {

/// A CPU for each thread of the pool: where all CPUs are busy, the system would wake them on the caller's.
void pin_threads() {
#if defined(__linux__)
  cpu::set_thread_count(2);
  cpu::parallel_for(2, 1e12, [](std::int64_t) {});
  unsigned cpu = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) {
    cpu_set_t mask;
    CPU_ZERO(&mask);
    CPU_SET(cpu++ % std::thread::hardware_concurrency(), &mask);
    sched_setaffinity(std::stoi(entry.path().filename()), sizeof(mask), &mask);
  }
#endif
}

/// The tenth percentile of `repeats` runs on one thread and on two, in turns: what a busy machine adds is left out.
template <class Run>
std::pair<double, double> microseconds(int repeats, Run&& run) {
  std::vector<double> times[2];
  for (int i = 0; i < 2 * repeats; ++i) {
    cpu::set_thread_count(1 + i % 2);
    std::this_thread::sleep_for(std::chrono::microseconds(200));
    const double start = seconds();
    run();
    times[i % 2].push_back(1e6 * (seconds() - start));
  }
  for (std::vector<double>& t : times) std::nth_element(t.begin(), t.begin() + repeats / 10, t.end());
  return {times[0][repeats / 10], times[1][repeats / 10]};
}

void print_row(const char* name, double flops, std::pair<double, double> time) {
  std::printf("%-22s %8.2f %10.1f %10.1f %8.2f\n", name, flops * 1e-6, time.first, time.second,
              time.first / time.second);
}

void measure(int rank, std::int64_t length, std::int64_t kernel_size, int repeats) {
  Problem p;
  p.rank = rank;
  p.batch = p.kv_heads = 1;
  p.heads = 1;
  p.head_dim = p.value_dim = 32;
  p.scale = 1;
  p.axes.fill(Axis{1, 1, 1, 1, 1, false});
  for (int a = kAxes - rank; a < kAxes; ++a) p.axes[a] = {length, kernel_size, 1, 1, 1, false};
  const std::int64_t size = p.tokens() * 32;
  std::vector<float> query(size, 0.5F), key(size, 0.5F), value(size, 0.5F), out(size), lse(p.tokens());
  const auto tensor = [&](std::vector<float>& memory) {
    cpu::Tensor t;
    t.data = memory.data();
    const std::int64_t row = 32 * p.axes[2].length, strides[] = {size, row * p.axes[1].length, row, 32, 32};
    std::copy_n(strides, 5, t.strides);
    return t;
  };
  const cpu::AttentionInputs inputs{p, tensor(query), tensor(key), tensor(value), nullptr, nullptr};
  const cpu::Tensor result = tensor(out);
  char name[64];
  std::snprintf(name, sizeof(name), "%d-D L %lld K %lld", rank, static_cast<long long>(length),
                static_cast<long long>(kernel_size));
  print_row(name, 4.0 * static_cast<double>(size * p.kernel_volume()),
            microseconds(repeats, [&] { cpu::attention_forward(inputs, result, lse.data()); }));
}

void run(int repeats) {
  pin_threads();
  std::printf("target %s\n%-22s %8s %10s %10s %8s\n", cpu::cpu_target().c_str(), "", "Mflop", "1 thread us",
              "2 threads", "speed-up");
  print_row("two empty tasks", 0, microseconds(repeats, [] { cpu::parallel_for(2, 1e12, [](std::int64_t) {}); }));
  for (const std::int64_t length : {64, 128, 256, 512, 1024, 2048, 4096}) measure(1, length, 7, repeats);
  for (const std::int64_t length : {64, 128, 256, 512, 1024}) measure(1, length, 31, repeats);
  for (const std::int64_t length : {8, 12, 16, 20, 24, 28, 32, 40, 56}) measure(2, length, 7, repeats);
  cpu::set_thread_count(0);
}

}  // namespace
}  // namespace natten::bench

int main(int argc, char** argv) {
  natten::bench::run(argc > 1 ? std::atoi(argv[1]) : 200);
}
