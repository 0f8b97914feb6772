// The table of calls on which every kernel of the fast tier is emulated, checked for address spaces and compiled for
// CUDA.
#pragma once

#include <string>
#include <vector>

#include "fast/kernel_source.h"

namespace natten::metal_host {

enum class Layout {
  dense,
  heads_first,     ///< [B, H, L..., D] seen as [B, L..., H, D]
  channels_first,  ///< [B, D, L..., H]: neighbouring channels are far apart
  same_batch,      ///< one sample broadcast over the batch: stride 0
};

struct Case {
  std::string name;
  Problem problem;  ///< of Op::attention; kernels of the split form take its op
  Layout layout = Layout::dense;
  std::vector<std::int32_t> lengths;  ///< [B, 3] when problem.has_lengths
  bool masks = false;                 ///< rpb is -inf: everywhere in the first head, here and there in the others
};

std::vector<Case> cases();
/// More of them, for Hopper's warpgroups: several blocks of keys, several boxes side by side.
std::vector<Case> warpgroup_cases();

/// Whether tests take every kernel of every case (NATTEN_TEST_ALL=1: minutes), or a sample.
bool wants_every_kernel();

/// The kernels of all three operations, each with the problem it gets.
struct KernelOf {
  fast::KernelId id;
  Problem problem;
};
std::vector<KernelOf> kernels_of(const Problem& problem);

}  // namespace natten::metal_host
