// The fused backward: chooses the sweep of a task, and runs all tasks.
#include "native/cpu/backward.h"

#include <optional>

#include "native/cpu/matrix_plan.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "native/cpu/backward.cpp"
#include "hwy/foreach_target.h"
// Highway asks that these come after foreach_target.h.
#include "hwy/highway.h"
#include "native/cpu/backward_dense-inl.h"
#include "native/cpu/backward_sweep-inl.h"
#include "native/cpu/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace {

void run_backward(const AttentionInputs& inputs, const SavedForward& saved, const backward::Gradients& gradients,
                  const TaskSums& sums, const Task& task) {
  const auto& axes = inputs.problem.axes;
  if (axes[0].kernel_size == 1 && axes[1].kernel_size == 1 && axes[2].kernel_size >= tuning::kDenseKernel) {
    DenseSweep sweep(inputs, saved, gradients, task);
    sweep.run();
    if (sweep.is_finite()) return;
    sums.clear(task);
  }
  BackwardSweep(inputs, saved, gradients, task).run();
}

}  // namespace
}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace natten::cpu {

HWY_EXPORT(run_backward);

namespace backward {
// False, with the task undone, where something is not finite or takes too much memory.
bool run_matrix_task(const AttentionInputs& inputs, const SavedForward& saved, const Gradients& gradients,
                     const Task& task);
}  // namespace backward

namespace {

void run(const AttentionInputs& inputs, const SavedForward& saved, backward::Gradients gradients) {
  const Problem& p = inputs.problem;
  ExtraTokens tokens(p, inputs.extra_key, inputs.extra_value);
  tokens.load();
  gradients.extra_tokens = &tokens;
  std::optional<ExtraTokens> dextra;
  if (gradients.extra != nullptr) dextra.emplace(p, gradients.extra[0], gradients.extra[1]);
  const Wanted wanted = gradients.wanted();
  const bool is_strided = p.axes[0].stride * p.axes[1].stride * p.axes[2].stride > 1;
  if (wanted.query && (is_strided || inputs.lengths)) fill(*gradients.query, query_grid(p), p.heads, p.head_dim, 0.0f);
  if (wanted.key_value && inputs.lengths) {
    fill(*gradients.key, key_grid(p), p.kv_heads, p.head_dim, 0.0f);
    fill(*gradients.value, key_grid(p), p.kv_heads, p.value_dim, 0.0f);
  }
  const double products = 2.0 + (wanted.query ? 1.0 : 0.0) + (wanted.key_value ? 2.0 : 0.0);
  const double flops = products * static_cast<double>(p.batch * p.heads * p.queries()) *
                       static_cast<double>((p.kernel_volume() + p.extra_tokens) * (p.head_dim + p.value_dim));
  const bool on_matrix_unit = takes_matrix_unit_backward(p) && saved.dout.type == FloatType::bfloat16;
  const TaskSums sums(p, gradients.rpb, dextra ? &*dextra : nullptr);
  run_tasks(inputs, flops, sums, [&](const Task& task) {
    if (on_matrix_unit) {
      if (backward::run_matrix_task(inputs, saved, gradients, task)) return;
      sums.clear(task);
    }
    NATTEN_DISPATCH(run_backward)(inputs, saved, gradients, sums, task);
  });
  if (dextra) dextra->store();
}

}  // namespace

void attention_backward_query(const AttentionInputs& inputs, const SavedForward& saved, const Tensor& dq, float* drpb) {
  run(inputs, saved, {&dq, drpb, nullptr, nullptr});
}

void attention_backward_key_value(const AttentionInputs& inputs, const SavedForward& saved, const Tensor& dk,
                                  const Tensor& dv) {
  run(inputs, saved, {nullptr, nullptr, &dk, &dv});
}

void attention_backward(const AttentionInputs& inputs, const SavedForward& saved, const Tensor& dq, float* drpb,
                        const Tensor& dk, const Tensor& dv, const Tensor* dextra) {
  run(inputs, saved, {&dq, drpb, &dk, &dv, dextra});
}

}  // namespace natten::cpu
#endif  // HWY_ONCE
