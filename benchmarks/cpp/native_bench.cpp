// Times the CPU kernels against the machine: every measurement is a ratio to an FMA loop and a copy of the same run.
// The bound is the larger of FLOPs over the peak and bytes, every tensor once, over the copy rate.
//
// native_bench [--case NAME] [--size small|large] [--direction forward|backward|training] [--dtype f32|f16|bf16]
//              [--threads N] [--repeats N] [--json FILE]
//
// Large: a batch whose results exceed 64 MiB. Training: forward and backward.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <random>
#include <stdexcept>

#include "cases.h"
#include "machine.h"
#include "native/cpu/forward_plan.h"
#include "native/cpu/half.h"
#include "native/cpu/kernels.h"
#include "native/cpu/target.h"
#include "native/cpu/thread_pool.h"

namespace natten::bench {
namespace {

using cpu::AttentionInputs;
using cpu::SavedForward;
using cpu::Tensor;

struct Options {
  std::string name, size, direction, dtype, json;
  int threads = 0, repeats = 15;
};

/// A dense tensor [B, L0, L1, L2, H, D] of random values.
class Array {
 public:
  Array(const Problem& p, std::int64_t heads, std::int64_t dim, FloatType type, unsigned seed)
      : memory_(p.batch * p.tokens() * heads * dim * cpu::element_size(type) + 64) {
    tensor_.type = type;
    tensor_.data = memory_.data() + (64 - reinterpret_cast<std::uintptr_t>(memory_.data()) % 64) % 64;
    const std::int64_t row = heads * dim;
    const std::int64_t strides[] = {p.tokens() * row, p.axes[1].length * p.axes[2].length * row, p.axes[2].length * row,
                                    row, dim};
    std::copy_n(strides, 5, tensor_.strides);
    std::minstd_rand random(seed);
    std::uniform_real_distribution<float> uniform(-1, 1);
    cpu::with_storage_type(type, [&](auto storage) {
      auto* data = static_cast<decltype(storage)*>(tensor_.data);
      for (std::int64_t i = 0; i < p.batch * p.tokens() * row; ++i) cpu::from_float(uniform(random), data[i]);
    });
  }
  const Tensor& tensor() const { return tensor_; }

 private:
  std::vector<char> memory_;
  Tensor tensor_;
};

struct Result {
  std::string name, size, direction, dtype, kernel, tile;
  int threads;
  double milliseconds, gflops, peak_percent, bound_percent, bandwidth, peak_gflops, target;
};

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

Result measure(const Case& c, const std::string& size, const std::string& direction, FloatType type, const char* dtype,
               int threads, int repeats) {
  const Problem p = problem_of(c, type, size == "large");
  const Array query(p, c.heads, c.dim, type, 1), key(p, c.heads, c.dim, type, 2), value(p, c.heads, c.dim, type, 3);
  const Array out(p, c.heads, c.dim, type, 4), dout(p, c.heads, c.dim, type, 5);
  const Array dq(p, c.heads, c.dim, type, 6), dk(p, c.heads, c.dim, type, 7), dv(p, c.heads, c.dim, type, 8);
  std::vector<float> lse(p.batch * p.tokens() * c.heads);
  const AttentionInputs inputs{p, query.tensor(), key.tensor(), value.tensor(), nullptr, nullptr};
  const SavedForward saved{out.tensor(), lse.data(), dout.tensor(), nullptr};
  const bool forward = direction == "forward", training = direction == "training";
  const auto run = [&] {
    if (forward || training) cpu::attention_forward(inputs, out.tensor(), lse.data());
    if (!forward) {
      cpu::attention_backward(inputs, saved, {dq.tensor(), nullptr, dk.tensor(), dv.tensor()});
    }
  };
  cpu::set_thread_count(threads);
  cpu::attention_forward(inputs, out.tensor(), lse.data());
  run();

  const double elements = static_cast<double>(p.batch * p.tokens() * c.heads * c.dim);
  const double flops = (forward ? 4.0 : training ? 14.0 : 10.0) * elements * static_cast<double>(p.kernel_volume());
  const double bytes = (forward    ? 4.0
                        : training ? 12.0
                                   : 8.0) *
                       elements * static_cast<double>(cpu::element_size(type));
  const double bandwidth = copy_bandwidth();
  std::vector<double> times, peaks, percents;
  for (int i = 0; i < repeats; ++i) {
    const double peak = fma_peak();
    const auto clock = threads == 1 ? thread_seconds : seconds;
    const double start = clock();
    int runs = 0;
    double elapsed;
    do {  // at least as long as the FMA loop
      run();
      elapsed = clock() - start;
    } while (++runs < 1000 && elapsed < 1e-3);
    times.push_back(elapsed / runs);
    peaks.push_back(peak);
    percents.push_back(100 * flops / times.back() / peak);
  }
  cpu::set_thread_count(0);
  const double time = median(times);
  const double bound = std::max(flops / (threads * median(peaks)), bytes / bandwidth);
  const cpu::forward::Description kernel = cpu::forward::describe(p);
  return {c.name,
          size,
          direction,
          dtype,
          forward ? kernel.kernel : "",
          forward ? kernel.tile : "",
          threads,
          time * 1e3,
          flops / time * 1e-9,
          median(percents),
          100 * bound / time,
          bandwidth * 1e-9,
          median(peaks) * 1e-9,
          forward    ? c.forward_target
          : training ? c.training_target
                     : 0};
}

void write_json(const std::string& file, const std::vector<Result>& results) {
  std::ofstream json(file);
  json << "{\"target\": \"" << cpu::cpu_target() << "\", \"results\": [";
  for (std::size_t i = 0; i < results.size(); ++i) {
    const Result& r = results[i];
    json << (i ? ",\n" : "\n") << "  {\"case\": \"" << r.name << "\", \"size\": \"" << r.size << "\", \"direction\": \""
         << r.direction << "\", \"dtype\": \"" << r.dtype << "\", \"threads\": " << r.threads << ", \"kernel\": \""
         << r.kernel << "\", \"tile\": \"" << r.tile << "\", \"milliseconds\": " << r.milliseconds
         << ", \"gflops\": " << r.gflops << ", \"fma_peak_gflops\": " << r.peak_gflops
         << ", \"percent_of_peak\": " << r.peak_percent << ", \"percent_of_bound\": " << r.bound_percent
         << ", \"copy_gb_per_s\": " << r.bandwidth << ", \"target_percent\": " << r.target << "}";
  }
  json << "\n]}\n";
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i];
    if (i + 1 >= argc) throw std::invalid_argument("no value for " + flag);
    if (flag == "--case") {
      options.name = argv[i + 1];
    } else if (flag == "--size") {
      options.size = argv[i + 1];
    } else if (flag == "--direction") {
      options.direction = argv[i + 1];
    } else if (flag == "--dtype") {
      options.dtype = argv[i + 1];
    } else if (flag == "--threads") {
      options.threads = std::atoi(argv[i + 1]);
    } else if (flag == "--repeats") {
      options.repeats = std::max(1, std::atoi(argv[i + 1]));
    } else if (flag == "--json") {
      options.json = argv[i + 1];
    } else {
      throw std::invalid_argument("unknown option " + flag);
    }
  }
  return options;
}

/// A whole name, or a rank such as "2d".
bool is_wanted(const std::string& name, const std::string& wanted) {
  return wanted.empty() || name == wanted || name.substr(0, name.find('-')) == wanted;
}

int run(const Options& options) {
  static constexpr std::pair<FloatType, const char*> kTypes[] = {
      {FloatType::float32, "f32"}, {FloatType::float16, "f16"}, {FloatType::bfloat16, "bf16"}};
  std::printf("target %s, FMA peak %.1f GFLOP/s, copy %.1f GB/s\n", cpu::cpu_target().c_str(), fma_peak() * 1e-9,
              copy_bandwidth() * 1e-9);
  std::printf("%-13s %-5s %-8s %-5s %7s %10s %9s %8s %8s %7s  %s\n", "case", "size", "pass", "dtype", "threads", "ms",
              "GFLOP/s", "% peak", "% bound", "target", "kernel");
  std::vector<Result> results;
  for (const Case& c : cases()) {
    if (!is_wanted(c.name, options.name)) continue;
    const auto measure_all = [&](const char* size, const char* direction) {
      for (const auto& [type, dtype] : kTypes) {
        if (!options.dtype.empty() && options.dtype != dtype) continue;
        for (int threads : {1, 2}) {
          if (options.threads != 0 && options.threads != threads) continue;
          const Result r = measure(c, size, direction, type, dtype, threads, options.repeats);
          std::printf("%-13s %-5s %-8s %-5s %7d %10.3f %9.1f %8.1f %8.1f %7.0f  %s %s\n", r.name.c_str(), size,
                      direction, dtype, threads, r.milliseconds, r.gflops, r.peak_percent, r.bound_percent, r.target,
                      r.kernel.c_str(), r.tile.c_str());
          std::fflush(stdout);
          results.push_back(r);
        }
      }
    };
    for (const char* size : {"small", "large"}) {
      if (!options.size.empty() && options.size != size) continue;
      for (const char* direction : {"forward", "backward", "training"}) {
        if (options.direction.empty() || options.direction == direction) measure_all(size, direction);
      }
    }
  }
  if (!options.json.empty()) write_json(options.json, results);
  return results.empty() ? 1 : 0;
}

}  // namespace
}  // namespace natten::bench

int main(int argc, char** argv) {
  try {
    return natten::bench::run(natten::bench::parse(argc, argv));
  } catch (const std::exception& error) {
    std::cerr << "native_bench: " << error.what() << '\n';
    return 2;
  }
}
