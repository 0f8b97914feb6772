// The part of a problem that one task of the forward pass computes. Included once per SIMD target.
#if defined(NATTEN_NATIVE_CPU_FORWARD_REGION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_FORWARD_REGION_INL_H_
#undef NATTEN_NATIVE_CPU_FORWARD_REGION_INL_H_
#else
#define NATTEN_NATIVE_CPU_FORWARD_REGION_INL_H_
#endif

#include <array>
#include <cstdint>

#include "hwy/highway.h"
#include "native/cpu/tensor.h"
#include "native/cpu/tile_rows-inl.h"
#include "native/cpu/tile_tasks.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {

/// What a task computes.
struct Region {
  const Task& task;
  const AxisGroup* group[kAxes];
  AxisPart part[kAxes];

  explicit Region(const Task& t) : task(t) {
    for (int a = 0; a < kAxes; ++a) {
      group[a] = &t.plan->group(a, t.group[a]);
      part[a] = make_part(*group[a], t.owned[a], {true, false}, true);
    }
  }
  bool is_empty() const {
    return size_of(part[0].queries) <= 0 || size_of(part[1].queries) <= 0 || size_of(part[2].queries) <= 0;
  }
  /// Keys or values of the last axis from place k2 on.
  TensorRows key_rows(const Tensor& tensor, std::int64_t head, std::int64_t k0, std::int64_t k1,
                      std::int64_t k2) const {
    const Place at{group[0]->token(k0), group[1]->token(k1), group[2]->token(k2)};
    return {row_of(tensor, task.plan->batch, at, head), tensor.strides[3] * group[2]->token_step, tensor.type};
  }
  Place output_of(std::int64_t q0, std::int64_t q1, std::int64_t q2) const {
    return {group[0]->queries[q0].output, group[1]->queries[q1].output, group[2]->queries[q2].output};
  }
  /// Distance, in output positions, of two queries of the last axis.
  std::int64_t query_step() const {
    const auto& queries = group[2]->queries;
    return queries.size() > 1 ? queries[1].output - queries[0].output : 1;
  }
  /// Queries of the last axis from q2 on.
  TensorRows query_rows(const Tensor& query, std::int64_t head, std::int64_t q0, std::int64_t q1,
                        std::int64_t q2) const {
    const std::array<Axis, kAxes>& axes = task.plan->sample.axes;
    const Place output = output_of(q0, q1, q2);
    const Place token{output[0] * axes[0].stride, output[1] * axes[1].stride, output[2] * axes[2].stride};
    return {row_of(query, task.plan->batch, token, head), query.strides[3] * axes[2].stride * query_step(), query.type};
  }
  TensorRows out_rows(const Tensor& out, std::int64_t head, std::int64_t q0, std::int64_t q1, std::int64_t q2) const {
    return {row_of(out, task.plan->batch, output_of(q0, q1, q2), head), out.strides[3] * query_step(), out.type};
  }
};

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_FORWARD_REGION_INL_H_
