// Kernels as nodes of MLX's graph.
#pragma once

#include <string>
#include <vector>

#include "fast/compiler.h"
#include "fast/kernel_source.h"
#include "fast/lru_cache.h"
#include "mlx/array.h"
#include "mlx/device.h"
#include "mlx/stream.h"

namespace natten::fast {

namespace mx = mlx::core;

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

struct NamedArray {
  std::string name;
  mx::array array;
};

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

/// One primitive that runs `kernels` of a `nearest` problem one after the other. Its inputs are `inputs` in order, of
/// which each kernel takes those that it names; its first outputs are `results`, and what the kernels hand on to each
/// other follows.
std::vector<mx::array> launch(const Problem& problem, const std::vector<KernelId>& kernels,
                              const std::vector<NamedArray>& inputs, const std::vector<std::string>& results,
                              mx::Stream stream);

}  // namespace natten::fast
