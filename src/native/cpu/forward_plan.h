// How a fused forward pass is cut into tasks, and which kernel computes it.
#pragma once

#include <string>

#include "native/cpu/extra_tokens.h"
#include "native/cpu/kernels.h"
#include "native/cpu/tile_tasks.h"

namespace natten::cpu::forward {

enum class Design {
  query_lanes,  ///< lanes are queries, keys are broadcast: long windows along one axis
  direct,       ///< lanes are channels, nothing is packed: where memory binds
  few_queries,  ///< lanes are channels, nothing is copied: a few queries of long windows, as a step of decoding has
  shift,        ///< lanes are queries, keys packed transposed, every load of keys serves several rows of queries
  matrix,       ///< bfloat16 on a matrix unit: boxes of queries and of keys
};

Design choose_design(const Problem& problem);
/// Without a matrix unit.
Design choose_vector_design(const Problem& problem);

/// Name of the kernel and sizes of its blocks, for people.
struct Description {
  std::string kernel;
  std::string tile;
};
Description describe(const Problem& problem);

Partition partition_of(const Problem& problem);

/// Whether the windows of "shift" are so large that neither their scores nor their keys fit a cache: they are then
/// computed segment by segment, with a running maximum and sum.
bool is_segmented(const Problem& problem);

/// Of "few queries": segments that the keys of a task are cut into, which threads share.
std::int64_t few_segments(const Problem& problem);
/// Floats of the sums of one of them.
std::int64_t few_sums_size(const Problem& problem);

struct Pass {
  const AttentionInputs& inputs;
  const Tensor& out;
  float* lse;
  const ExtraTokens& extra;
};

}  // namespace natten::cpu::forward
