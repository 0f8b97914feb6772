// Kernels as nodes of MLX's graph.
#pragma once

#include <string>
#include <vector>

#include "fast/kernel_source.h"
#include "mlx/array.h"
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
/// The platform whose kernels a call would run now.
Platform platform();

struct NamedArray {
  std::string name;
  mx::array array;
};

/// One primitive that runs `kernels` one after the other. Its inputs are `inputs` in order, of which each kernel takes
/// those that it names; its first outputs are `results`, and what the kernels hand on to each other follows.
std::vector<mx::array> launch(const Problem& problem, const std::vector<KernelId>& kernels,
                              const std::vector<NamedArray>& inputs, const std::vector<std::string>& results,
                              mx::Stream stream);

}  // namespace natten::fast
