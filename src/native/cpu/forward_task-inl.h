// What the forward kernels know of the task that they run. Included once per SIMD target.
#if defined(NATTEN_NATIVE_CPU_FORWARD_TASK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_FORWARD_TASK_INL_H_
#undef NATTEN_NATIVE_CPU_FORWARD_TASK_INL_H_
#else
#define NATTEN_NATIVE_CPU_FORWARD_TASK_INL_H_
#endif

#include "hwy/highway.h"
#include "native/cpu/forward_plan.h"
#include "native/cpu/region-inl.h"
#include "native/cpu/tile_extra-inl.h"
#include "native/cpu/tile_rows-inl.h"
#include "native/cpu/tuning.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {

using forward::Pass;

class ForwardTask {
 protected:
  ForwardTask(const Pass& pass, const Task& task)
      : pass_(pass),
        p_(pass.inputs.problem),
        region_(task),
        axes_(task.plan->sample.axes),
        group_(region_.group),
        part_(region_.part),
        heads_(p_.heads / p_.kv_heads),
        pitch_(round_up(p_.head_dim, kLanes)),
        value_pitch_(round_up(p_.value_dim, kLanes)),
        end_(pass.extra, p_),
        is_streamed_(p_.batch * p_.queries() * p_.heads * p_.value_dim * 4 >= tuning::kStreamBytes) {}

  /// See TileEnd.
  HWY_INLINE void normalize(std::int64_t head, const float* queries, TileVec max, TileVec total) {
    end_.normalize(region_.task.plan->batch, head / heads_, queries, max, total);
  }
  HWY_INLINE void store(std::int64_t head, std::int64_t q0, std::int64_t q1, std::int64_t query, int count, float* rows,
                        bool is_streamed) const {
    end_.finish(count, rows);
    store_rows(rows, value_pitch_, count, p_.value_dim, region_.out_rows(pass_.out, head, q0, q1, query), is_streamed);
    region_.for_each_entry(p_, head, q0, q1, query, count,
                           [&](int lane, std::int64_t entry) { pass_.lse[entry] = end_.lse[lane]; });
  }

  /// Position biases of a row of keys, from the last axis' first entry on.
  const float* bias_of(std::int64_t head, std::int64_t q0, std::int64_t q1, std::int64_t k0, std::int64_t k1) const {
    return pass_.inputs.rpb + head * bias_entries(p_) + region_.bias_row(q0, q1, k0, k1);
  }
  /// The same of windows that hold one row of keys.
  const float* bias_of(std::int64_t head, std::int64_t q0, std::int64_t q1) const {
    return bias_of(head, q0, q1, group_[0]->queries[q0].keys.start, group_[1]->queries[q1].keys.start);
  }

  const Pass& pass_;
  const Problem& p_;
  const Region region_;
  const std::array<Axis, kAxes>& axes_;
  const AxisGroup* const* const group_;
  const AxisPart* const part_;
  const std::int64_t heads_;                ///< query heads of the key head
  const std::int64_t pitch_, value_pitch_;  ///< floats of a copied row of queries or keys, and of values
  TileEnd end_;
  const bool is_streamed_;  ///< results are too large to stay in a cache
};

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_FORWARD_TASK_INL_H_
