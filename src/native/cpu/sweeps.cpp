// The sweeps over rows of keys: the fused backward pass, which chooses that of a task, and the split form.
#include <limits>
#include <optional>

#include "native/cpu/backward.h"
#include "native/cpu/matrix_plan.h"
#include "native/cpu/split.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "native/cpu/sweeps.cpp"
#include "hwy/foreach_target.h"
// Highway asks that these come after foreach_target.h.
#include "hwy/highway.h"
#include "native/cpu/backward_dense-inl.h"
#include "native/cpu/backward_matrix-inl.h"
#include "native/cpu/backward_sweep-inl.h"
#include "native/cpu/dispatch.h"
#include "native/cpu/split_sweep-inl.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace {

void run_backward([[maybe_unused]] bool on_matrix_unit, const backward::Pass& pass, const TaskSums& sums,
                  const Task& task) {
#if HWY_TARGET == HWY_AVX3  // to Highway, all targets with a matrix unit are
  if (on_matrix_unit) {
    if (MatrixBackward(pass, task).run()) return;
    sums.clear(task);
  }
#endif
  const auto& axes = pass.inputs.problem.axes;
  if (axes[0].kernel_size == 1 && axes[1].kernel_size == 1 && axes[2].kernel_size >= tuning::kDenseKernel) {
    DenseSweep sweep(pass, task);
    sweep.run();
    if (sweep.is_finite()) return;
    sums.clear(task);
  }
  BackwardSweep(pass, task).run();
}

void run_split(const AttentionInputs& inputs, const split::Call& call, const Task& task) {
  switch (call.kind) {
    case split::Kind::products:
      return ProductsSweep(inputs, call, task).run();
    case split::Kind::sums:
      return SumsSweep(inputs, call, task).run();
    case split::Kind::key_sums:
      return KeySumsSweep(inputs, call, task).run();
  }
}

}  // namespace
}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace natten::cpu {

HWY_EXPORT(run_backward);
HWY_EXPORT(run_split);

void attention_backward(const AttentionInputs& inputs, const SavedForward& saved, const Gradients& gradients) {
  const Problem& p = inputs.problem;
  ExtraTokens tokens(p, inputs.extra_key, inputs.extra_value);
  tokens.load();
  const backward::Pass pass{inputs, saved, gradients, tokens};
  std::optional<ExtraTokens> dextra;
  if (gradients.extra != nullptr) dextra.emplace(p, gradients.extra[0], gradients.extra[1]);
  const Wanted wanted = pass.wanted();
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
    NATTEN_DISPATCH(run_backward)(on_matrix_unit, pass, sums, task);
  });
  if (dextra) dextra->store();
}

namespace {

using split::Call;
using split::Kind;

void run_all(const AttentionInputs& inputs, const Call& call) {
  const Problem& p = inputs.problem;
  const bool has_lengths = inputs.lengths != nullptr;
  const bool is_strided = p.axes[0].stride * p.axes[1].stride * p.axes[2].stride > 1;
  if (call.kind == Kind::products && has_lengths) fill(call.slots, output_grid(p), p.heads, p.kernel_volume(), 0.0f);
  if (call.kind == Kind::sums && (has_lengths || (call.over_tokens && is_strided))) {
    fill(call.queries, call.over_tokens ? query_grid(p) : output_grid(p), p.heads, call.dim, 0.0f);
  }
  if (call.kind == Kind::key_sums && has_lengths) fill(call.keys, key_grid(p), p.kv_heads, call.dim, 0.0f);
  const double flops =
      2.0 * static_cast<double>(p.batch * p.heads * p.queries()) * static_cast<double>(p.kernel_volume() * call.dim);
  run_tasks(inputs, flops, {p, call.drpb, nullptr}, [&](const Task& task) {
    NATTEN_DISPATCH(run_split)(inputs, call, task);
  });
}

}  // namespace

void qk(const AttentionInputs& inputs, const Tensor& logits) {
  const Problem& p = inputs.problem;
  run_all(inputs, {Kind::products, inputs.key, inputs.query, true, logits, p.head_dim, static_cast<float>(p.scale),
                   -std::numeric_limits<float>::infinity(), inputs.rpb});
}

void qk_backward_query(const AttentionInputs& inputs, const Tensor& dlogits, const Tensor& dq, float* drpb) {
  const Problem& p = inputs.problem;
  run_all(inputs,
          {Kind::sums, inputs.key, dq, true, dlogits, p.head_dim, static_cast<float>(p.scale), 0.0f, nullptr, drpb});
}

void qk_backward_key(const AttentionInputs& inputs, const Tensor& dlogits, const Tensor& dk) {
  const Problem& p = inputs.problem;
  run_all(inputs, {Kind::key_sums, dk, inputs.query, true, dlogits, p.head_dim, static_cast<float>(p.scale)});
}

void av(const AttentionInputs& inputs, const Tensor& attn, const Tensor& out) {
  run_all(inputs, {Kind::sums, inputs.value, out, false, attn, inputs.problem.value_dim});
}

void av_backward_attn(const AttentionInputs& inputs, const Tensor& dout, const Tensor& dattn) {
  run_all(inputs, {Kind::products, inputs.value, dout, false, dattn, inputs.problem.value_dim});
}

void av_backward_value(const AttentionInputs& inputs, const Tensor& attn, const Tensor& dout, const Tensor& dv) {
  run_all(inputs, {Kind::key_sums, dv, dout, false, attn, inputs.problem.value_dim});
}

}  // namespace natten::cpu
#endif  // HWY_ONCE
