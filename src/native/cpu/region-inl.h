// The part of a problem that one task computes, and the addresses of its rows: the only place that knows where in the
// caller's tensors the places of a dilation group lie. Included once per SIMD target.
#if defined(NATTEN_NATIVE_CPU_REGION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_REGION_INL_H_
#undef NATTEN_NATIVE_CPU_REGION_INL_H_
#else
#define NATTEN_NATIVE_CPU_REGION_INL_H_
#endif

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

  /// `whole_windows`: from this axis on, see make_part().
  explicit Region(const Task& t, Wanted wanted = {true, false}, int whole_windows = 0) : task(t) {
    for (int a = 0; a < kAxes; ++a) {
      group[a] = &t.plan->group(a, t.group[a]);
      part[a] = make_part(*group[a], t.owned[a], wanted, a >= whole_windows);
    }
  }
  bool is_empty() const {
    return size_of(part[0].queries) <= 0 || size_of(part[1].queries) <= 0 || size_of(part[2].queries) <= 0;
  }
  /// Keys or values of the last axis from place k2 on.
  TensorRows key_rows(const Tensor& tensor, std::int64_t head, std::int64_t k0, std::int64_t k1,
                      std::int64_t k2) const {
    return rows(tensor, head, group[0]->key_rows.row(k0), group[1]->key_rows.row(k1), group[2]->key_rows, k2);
  }
  /// Queries of the last axis from q2 on, of a tensor over tokens.
  TensorRows query_rows(const Tensor& query, std::int64_t head, std::int64_t q0, std::int64_t q1,
                        std::int64_t q2) const {
    const auto row = [&](int a, std::int64_t q) {
      return group[a]->first_query_row + group[a]->queries[q].output * group[a]->query_step;
    };
    AxisRows last = group[2]->outputs;
    last.row0 = group[2]->first_query_row + last.row0 * group[2]->query_step;
    last.step *= group[2]->query_step;
    return rows(query, head, row(0, q0), row(1, q1), last, q2);
  }
  /// The same of a tensor over computed queries.
  TensorRows out_rows(const Tensor& out, std::int64_t head, std::int64_t q0, std::int64_t q1, std::int64_t q2) const {
    return rows(out, head, group[0]->queries[q0].output, group[1]->queries[q1].output, group[2]->outputs, q2);
  }
  /// In the table of position biases of a head, the first entry of a row of keys of a row of queries.
  std::int64_t bias_row(std::int64_t q0, std::int64_t q1, std::int64_t k0, std::int64_t k1) const {
    const auto& axes = task.plan->sample.axes;
    return (rpb_index(axes[0], group[0]->queries[q0].place, k0) * (2 * axes[1].kernel_size - 1) +
            rpb_index(axes[1], group[1]->queries[q1].place, k1)) *
           (2 * axes[2].kernel_size - 1);
  }
  /// Calls visit(lane, entry) for `count` queries of the last axis from q2 on: entries of a dense array
  /// [B, O0, O1, O2, Hq].
  template <class Visit>
  HWY_INLINE void for_each_entry(const Problem& p, std::int64_t head, std::int64_t q0, std::int64_t q1, std::int64_t q2,
                                 int count, Visit&& visit) const {
    const Place row{group[0]->queries[q0].output, group[1]->queries[q1].output, 0};
    const std::int64_t first = output_grid(p).index(task.plan->batch, row);
    for (int lane = 0; lane < count; ++lane) {
      visit(lane, (first + group[2]->queries[q2 + lane].output) * p.heads + head);
    }
  }

 private:
  /// Rows of the last axis from `index` on.
  TensorRows rows(const Tensor& tensor, std::int64_t head, std::int64_t row0, std::int64_t row1, const AxisRows& last,
                  std::int64_t index) const {
    const bool is_periodic = last.period != 0;
    Place at{row0, row1, is_periodic ? last.row0 : last.row(index)};
    TensorRows rows{row_of(tensor, task.plan->batch, at, head), tensor.strides[3] * last.step, tensor.type,
                    is_periodic ? last.number(index) : 0, last.period};
    if (tensor.cut_axis != kAxes - 1) return rows;
    const std::int64_t row = at[2];
    for (const std::int64_t border : {tensor.first, tensor.end}) {
      if (border <= row) continue;
      const std::int64_t distance = (border - row + last.step - 1) / last.step;
      at[2] = row + distance * last.step;
      rows.cut[rows.cuts++] = {distance, row_of(tensor, task.plan->batch, at, head)};
    }
    return rows;
  }
};

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_REGION_INL_H_
