// How a fused forward pass is cut into tasks, and which kernel computes it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "native/cpu/backward_plan.h"
#include "native/cpu/kernels.h"
#include "native/cpu/sample.h"

namespace natten::cpu::forward {

using backward::AxisGroup;
using backward::AxisPart;
using backward::Span;

enum class Design {
  generic,      ///< one query at a time
  query_lanes,  ///< lanes are queries, keys are broadcast: long windows along one axis
  shift,        ///< lanes are queries, keys packed transposed, every load of keys serves several rows of queries
};

Design choose_design(const Problem& problem);

/// Name of the kernel and sizes of its blocks, for people.
struct Description {
  std::string kernel;
  std::string tile;
};
Description describe(const Problem& problem);

/// How a problem is cut into tasks. Depends on the problem only, so that results do not depend on the threads.
struct Partition {
  std::array<std::int64_t, kAxes> parts;  ///< per axis, inside a dilation group
  std::int64_t heads;                     ///< key/value heads of a task
};
Partition partition_of(const Problem& problem);

/// What the tasks of one sample share.
struct SamplePlan {
  std::int64_t batch;
  Sample sample;
  std::array<std::vector<AxisGroup>, kAxes> groups;  ///< one per dilation group
};

/// Queries of some key/value heads, and of all query heads that read them.
struct Task {
  const SamplePlan* plan;
  Span kv_heads;
  std::array<std::int64_t, kAxes> group;
  std::array<Span, kAxes> owned;  ///< places
};

struct Pass {
  const AttentionInputs& inputs;
  const Tensor& out;
  float* lse;
};

void tiled(const AttentionInputs& inputs, const Tensor& out, float* lse);

}  // namespace natten::cpu::forward
