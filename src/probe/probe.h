// What this machine can do at best: the limits that benchmarks compare the kernels with.
#pragma once

#include <cstdint>

namespace natten::cpu {

/// Independent float32 multiply-adds in registers, on the calling thread and the SIMD target in use. Returns the
/// floating-point operations done, for the caller to time.
double fma_burst(std::int64_t rounds);

/// Bursts of `rounds` per thread on thread_count() threads. Returns floating-point operations per second of wall time.
double fma_rate(std::int64_t rounds);

/// One pass that copies `bytes` from one buffer into another on thread_count() threads, the best of `repeats`. Returns
/// bytes read and written per second.
double copy_rate(std::int64_t bytes, int repeats);

/// float32 lanes of a vector of the SIMD target in use.
std::int64_t float_lanes();

}  // namespace natten::cpu
