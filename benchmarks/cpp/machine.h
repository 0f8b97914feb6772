// What the machine can do, measured next to the kernels: the yardsticks of the benchmark.
#pragma once

#include <cstdint>

namespace natten::bench {

/// Wall time.
double seconds();
/// Time that the calling thread has run: other programs on a busy machine do not count.
double thread_seconds();

/// Floating-point operations per second of a loop of independent fused multiply-adds, on the calling thread.
double fma_peak();

/// Bytes per second, read plus written, of copying a buffer much larger than the caches, on the calling thread.
double copy_bandwidth();

}  // namespace natten::bench
