// Kernels as nodes of MLX's graph.
#pragma once

#include <string>
#include <vector>

#include "fast/compiler.h"
#include "fast/kernel_source.h"
#include "fast/lru_cache.h"
#include "mlx/device.h"
#include "ops/tier.h"

namespace natten::fast {

/// The platform that this library's MLX compiles kernels for.
#ifdef __APPLE__
inline constexpr Platform kPlatform = Platform::metal;
#else
inline constexpr Platform kPlatform = Platform::cuda;
#endif

/// Whether kernels run on the host's emulator of Metal: only in builds with NATTEN_BUILD_EMULATOR, for tests.
bool is_emulated();
/// What kernels of a call would be made for now. Where there is no GPU: for Metal, as the tier is named there.
Target target(mx::Device device = mx::Device::gpu);

/// What becomes of a kernel, for those who wait for it.
struct PreparedKernel {
  std::string name;
  CubinPtr code;  ///< empty where MLX compiles the kernel when it first runs
};
/// Begins to make the kernels that a call and its gradients would run now.
std::vector<PreparedKernel> prepare(const Problem& problem, bool gradients);

/// Texts and compiled kernels that are kept, with the plans that chose them.
CacheUsage kernel_cache_usage();
void clear_kernel_cache();

/// One primitive that runs the kernels of a call one after the other. What they hand on to each other is outputs, too.
Arrays run_kernels(const Call& call);

}  // namespace natten::fast
