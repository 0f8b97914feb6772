// The fused forward pass: chooses the kernel of a task, and runs all tasks.
#include <algorithm>

#include "native/cpu/forward_plan.h"
#include "native/cpu/scratch.h"
#include "native/cpu/tensor.h"
#include "native/cpu/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "native/cpu/forward.cpp"
#include "hwy/foreach_target.h"
// Highway asks that these come after foreach_target.h.
#include "hwy/highway.h"
#include "native/cpu/dispatch.h"
#include "native/cpu/forward_direct-inl.h"
#include "native/cpu/forward_few-inl.h"
#include "native/cpu/forward_lanes-inl.h"
#include "native/cpu/forward_matrix-inl.h"
#include "native/cpu/forward_shift-inl.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace {

/// False, with the task undone, where a matrix unit meets a value that is not finite.
bool run_forward([[maybe_unused]] forward::Design design, const Pass& pass, const Task& task) {
#if HWY_TARGET == HWY_AVX3  // to Highway, all targets with a matrix unit are
  if (design == forward::Design::matrix) return MatrixForward(pass, task).run();
#endif
  if (design == forward::Design::query_lanes) {
    LanesSweep(pass, task).run();
  } else if (design == forward::Design::direct) {
    DirectSweep(pass, task).run();
  } else {
    ForwardSweep(pass, task).run();
  }
  return true;
}

/// A segment of a task of few queries; `is_join`: the results, from the sums of all segments.
void run_few(const Pass& pass, const Task& task, std::int64_t segment, std::int64_t segments, float* sums,
             bool is_join) {
  FewQueries few(pass, task);
  is_join ? few.join(segments, sums) : few.run(segment, segments, sums);
}

}  // namespace
}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace natten::cpu {

HWY_EXPORT(run_forward);
HWY_EXPORT(run_few);

namespace {

using namespace forward;

void run_few_queries(const Pass& pass, const TaskList& tasks, double flops) {
  const Problem& p = pass.inputs.problem;
  const std::int64_t segments = few_segments(p) + (p.extra_tokens > 0 ? 1 : 0), size = few_sums_size(p);
  float* sums;
  const Scratch memory(
      [&](Scratch& scratch) { sums = scratch.take<float>(segments > 1 ? tasks.size() * segments * size : 0); });
  parallel_for(tasks.size() * segments, flops, [&](std::int64_t i) {
    const std::int64_t task = i / segments, segment = i % segments;
    NATTEN_DISPATCH(run_few)(pass, tasks[task], segment, segments, sums + (segments > 1 ? i * size : 0), false);
  });
  for (std::int64_t task = 0; task < tasks.size() && segments > 1; ++task) {
    NATTEN_DISPATCH(run_few)(pass, tasks[task], 0, segments, sums + task * segments * size, true);
  }
}

}  // namespace

void attention_forward(const AttentionInputs& inputs, const Tensor& out, float* lse) {
  const Problem& p = inputs.problem;
  if (p.batch == 0) return;
  if (inputs.lengths != nullptr) {
    // What lies behind a sample's lengths is zero.
    fill(out, output_grid(p), p.heads, p.value_dim, 0.0f);
    std::fill_n(lse, output_grid(p).size() * p.heads, 0.0f);
  }
  const Partition partition = partition_of(p);
  const double flops = 2.0 * static_cast<double>(p.batch * p.heads * p.queries()) *
                       static_cast<double>((p.kernel_volume() + p.extra_tokens) * (p.head_dim + p.value_dim));
  ExtraTokens extra(p, inputs.extra_key, inputs.extra_value);
  const Pass pass{inputs, out, lse, extra};
  const Design design = choose_design(p), vectors = choose_vector_design(p);
  if (design != Design::few_queries) extra.load();
  const auto run = [&](const Task& task) {
    if (NATTEN_DISPATCH(run_forward)(design, pass, task)) return;
    Task one = task;
    for (std::int64_t head = task.kv_heads.start; head < task.kv_heads.end; ++head) {
      one.kv_heads = {head, head + 1};
      NATTEN_DISPATCH(run_forward)(vectors, pass, one);
    }
  };
  for_each_wave(inputs, Cut::queries, [&](const std::vector<SamplePlan>& plans) {
    const TaskList tasks(p, plans, partition, Cut::queries);
    const double share = static_cast<double>(plans.size()) / static_cast<double>(p.batch);
    if (design == Design::few_queries) return run_few_queries(pass, tasks, share * flops);
    parallel_for(tasks.size(), share * flops, [&](std::int64_t i) { run(tasks[i]); });
  });
}

}  // namespace natten::cpu
#endif  // HWY_ONCE
