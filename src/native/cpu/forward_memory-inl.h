// The memory of the "shift" forward kernel: which rows of keys are packed, which scores are kept, and where. Included
// once per SIMD target.
#if defined(NATTEN_NATIVE_CPU_FORWARD_MEMORY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_FORWARD_MEMORY_INL_H_
#undef NATTEN_NATIVE_CPU_FORWARD_MEMORY_INL_H_
#else
#define NATTEN_NATIVE_CPU_FORWARD_MEMORY_INL_H_
#endif

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "hwy/highway.h"
#include "native/cpu/forward_plan.h"
#include "native/cpu/forward_task-inl.h"
#include "native/cpu/scratch.h"
#include "native/cpu/tile_softmax-inl.h"
#include "native/cpu/tile_values-inl.h"
#include "native/cpu/tuning.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {

/// A tile with what its rows need to know again and again.
struct ForwardTile : Tile {
  bool is_ragged = false;  ///< some windows have empty slots
  std::vector<QueryWindows> windows;

  ForwardTile(const Tile& tile, std::int64_t slots) : Tile(tile) {
    for (int q = 0; q < count; ++q) is_ragged |= empty_slots[q] > 0;
    for (int q = 0; q < count; q += windows.back().queries) windows.emplace_back(tile, q, slots);
  }
};

/// Rows of queries between two packings of keys: what tiles pass over one after the other.
struct Step {
  std::int64_t q0;
  Span rows;
};

/// Rows of keys of windows: places on the two outer axes.
struct KeyRows {
  Span k0s, k1s;
};

class ForwardMemory : protected ForwardTask {
 protected:
  ForwardMemory(const forward::Pass& pass, const Task& task)
      : ForwardTask(pass, task), dim_(p_.head_dim), value_dim_(p_.value_dim), query_row_(round_up(dim_, 4) * kLanes) {}

  Step first_step() const {
    const Span& q1s = part_[1].queries;
    return {part_[0].queries.start, {q1s.start, std::min(q1s.start + block_rows_, q1s.end)}};
  }
  Step step_after(const Step& step) const {
    const Span& q1s = part_[1].queries;
    if (step.rows.end < q1s.end) return {step.q0, {step.rows.end, std::min(step.rows.end + block_rows_, q1s.end)}};
    return {step.q0 + 1, first_step().rows};
  }

  Span query_heads(const Span& kv_heads) const { return {kv_heads.start * heads_, kv_heads.end * heads_}; }

  /// Rows of queries whose windows hold one row of keys, at most.
  std::int64_t most_active_rows() const {
    const auto& queries = group_[1]->queries;
    std::int64_t most = 1, first = part_[1].queries.start;
    for (std::int64_t q = first; q < part_[1].queries.end; ++q) {
      while (queries[first].keys.end <= queries[q].keys.start) ++first;
      most = std::max(most, q + 1 - first);
    }
    return most;
  }

  void plan_memory() {
    // Empty slots of a causal window may lie before the first key. Rows of keys are packed in aligned vectors.
    const std::int64_t before = std::max<std::int64_t>(part_[2].keys.start - tiles_.front().slot0, 0);
    first_place_ = part_[2].keys.start - round_up(before, kLanes);
    places_ = part_[2].keys.end - first_place_;
    // Loads of a tile reach kLanes - 1 places past its last key. An odd number of cache lines spreads the channels
    // over the sets of the cache.
    const std::int64_t line = std::max(kLanes, 16);
    key_pitch_ = (round_up(places_ + kLanes, line) / line | 1) * line;
    key_row_ = key_pitch_ * round_up(dim_, 4);
    is_segmented_ = forward::is_segmented(p_);
    slide_axis_ = size_of(part_[0].keys) > 1 ? 0 : 1;
    slab_rows_ = slide_axis_ == 0 ? size_of(part_[1].keys) : 1;
    const Tensor& value = pass_.inputs.value;
    const AxisRows& rows_of_keys = group_[2]->key_rows;
    const bool wraps = rows_of_keys.period != 0 &&
                       rows_of_keys.number(part_[2].keys.start) + size_of(part_[2].keys) > rows_of_keys.period;
    const bool is_one_frame = size_of(part_[slide_axis_].queries) == 1 && size_of(part_[slide_axis_].keys) > 1;
    values_in_place_ = value.type == FloatType::float32 && value_dim_ % kLanes == 0 && !wraps &&
                       value.cut_axis != kAxes - 1 &&
                       std::abs(value.strides[3] * rows_of_keys.step) <=
                           (is_one_frame ? tuning::kFrameInPlaceStep : tuning::kForwardInPlaceStep);
    value_step_ = values_in_place_ ? value.strides[3] * rows_of_keys.step : value_pitch_;
    value_row_ = places_ * value_pitch_;

    const auto most_keys = [](const AxisGroup& group, const Span& queries) {
      std::int64_t most = 1;
      for (std::int64_t q = queries.start; q < queries.end; ++q) most = std::max(most, size_of(group.queries[q].keys));
      return most;
    };
    const std::int64_t planes = most_keys(*group_[0], part_[0].queries);
    const std::int64_t window_rows = most_keys(*group_[1], part_[1].queries);
    score_plane_ = window_rows * axes_[2].kernel_size * kLanes;
    score_size_ = planes * score_plane_;
    value_rows_.resize(planes * window_rows);
    if (is_segmented_) return plan_segments(planes);

    // Rows of one step: as many as the packed keys allow, but where scores take much memory no more than that holds.
    const std::int64_t slab_bytes =
        4 * size_of(region_.task.kv_heads) * slab_rows_ * (key_row_ + (values_in_place_ ? 0 : value_row_));
    ring_rows_ = most_active_rows();
    const std::int64_t rows = size_of(part_[1].queries);
    block_rows_ = rows;
    if (slide_axis_ == 1) {
      block_rows_ = std::clamp<std::int64_t>(tuning::kForwardPackedBytes / slab_bytes - window_rows + 1,
                                             std::min<std::int64_t>(tuning::kForwardLeastStep, rows),
                                             std::min<std::int64_t>(tuning::kForwardMostStep, rows));
    }
    ring_rows_ = std::min(ring_rows_, block_rows_);
    if (4 * ring_rows_ * score_size_ > tuning::kForwardScoreBytes) {
      block_rows_ = std::clamp<std::int64_t>(tuning::kForwardScoreBytes / (4 * score_size_), 1, block_rows_);
      ring_rows_ = block_rows_;
    }

    capacity_ = 1;
    for (Step step = first_step(); step.q0 < part_[0].queries.end; step = step_after(step)) {
      capacity_ = std::max(capacity_, size_of(keys_of_step(step)));
    }
    packed_end_ = part_[slide_axis_].keys.start;
    packed_rows_ = size_of(region_.task.kv_heads) * capacity_ * slab_rows_;
    packed_queries_ = size_of(query_heads(region_.task.kv_heads)) * block_rows_;
  }

  void plan_segments(std::int64_t planes) {
    const std::int64_t slots = axes_[2].kernel_size * kLanes;
    block_rows_ = ring_rows_ = std::min<std::int64_t>(tuning::kSegmentStep, size_of(part_[1].queries));
    // By the problem, not by the task: the sums of a query must not depend on what else is computed.
    const std::int64_t row_bytes = 4 * (dim_ + value_dim_) * (tuning::kForwardRow + axes_[2].kernel_size);
    segment_rows_ = std::max<std::int64_t>(std::min(tuning::kSegmentScoreBytes / (4 * tuning::kSegmentStep * slots),
                                                    tuning::kSegmentPackedBytes / row_bytes),
                                           1);
    const Axis& inner = axes_[1];
    segment_planes_ =
        std::max<std::int64_t>(segment_rows_ / (inner.kernel_size + (tuning::kSegmentStep - 1) * inner.stride), 1);
    std::int64_t most = 1;  // rows of a plane
    for (Step step = first_step(); step.rows.start < part_[1].queries.end && step.q0 == first_step().q0;
         step = step_after(step)) {
      const auto& queries = group_[1]->queries;
      most = std::max(most, queries[step.rows.end - 1].keys.end - queries[step.rows.start].keys.start);
    }
    packed_rows_ = segment_planes_ == 1 ? std::min(segment_rows_, most) : std::min(segment_planes_, planes) * most;
    score_size_ = packed_rows_ * slots;
    packed_queries_ = static_cast<std::int64_t>(tiles_.size()) * heads_ * block_rows_;
  }

  void take_memory(Scratch& scratch) {
    keys_ = scratch.take<float>(packed_rows_ * key_row_);
    value_memory_ = scratch.take<float>(values_in_place_ ? 0 : packed_rows_ * value_row_);
    queries_ = scratch.take<float>(packed_queries_ * query_row_);
    sums_ = scratch.take<float>(is_segmented_ ? packed_queries_ * RunningSums::size(value_pitch_) : 0);
    scores_ = scratch.take<float>(ring_rows_ * score_size_);
    buffer_ = scratch.take<float>(kLanes * std::max(pitch_, value_pitch_));
    end_.take_memory(scratch);
  }

  /// Number of a row of keys among the packed ones, which form a ring of slabs, or are those of a segment.
  std::int64_t row_index(std::int64_t kv_head, std::int64_t k0, std::int64_t k1) const {
    if (is_segmented_) return (k0 - segment_.k0s.start) * size_of(segment_.k1s) + k1 - segment_.k1s.start;
    const std::int64_t slab = slide_axis_ == 0 ? k0 : k1, row = slide_axis_ == 0 ? k1 - part_[1].keys.start : 0;
    return ((kv_head - region_.task.kv_heads.start) * capacity_ + slab % capacity_) * slab_rows_ + row;
  }
  float* packed_keys(std::int64_t kv_head, std::int64_t k0, std::int64_t k1) const {
    return keys_ + row_index(kv_head, k0, k1) * key_row_;
  }
  /// Values at first_place_.
  const float* values_of(std::int64_t kv_head, std::int64_t k0, std::int64_t k1) const {
    if (!values_in_place_) return value_memory_ + row_index(kv_head, k0, k1) * value_row_;
    const TensorRows rows =
        region_.key_rows(pass_.inputs.value, kv_head, k0, k1, part_[2].keys.start).run(size_of(part_[2].keys));
    return reinterpret_cast<const float*>(rows.data) - (part_[2].keys.start - first_place_) * value_step_;
  }

  /// Slabs (planes of keys, or rows where there is one plane) that the windows of a step hold.
  Span keys_of_step(const Step& step) const {
    if (slide_axis_ == 0) return group_[0]->queries[step.q0].keys;
    const auto& queries = group_[1]->queries;
    return {queries[step.rows.start].keys.start, queries[step.rows.end - 1].keys.end};
  }

  /// Scores of a row of queries: [plane][row of keys of its window][slot][lane].
  float* ring_scores(const Step& step, std::int64_t q1) const {
    return scores_ + (q1 - step.rows.start) % ring_rows_ * score_size_;
  }

  /// Floats of the scores of one plane of keys.
  std::int64_t plane_of(const Span& window) const {
    if (!is_segmented_) return score_plane_;
    const Span& k1s = segment_.k1s;
    return (std::min(window.end, k1s.end) - std::max(window.start, k1s.start)) * axes_[2].kernel_size * kLanes;
  }

  RunningSums sums_of(std::int64_t index, const Step& step, std::int64_t q1) const {
    const std::int64_t row = index * block_rows_ + q1 - step.rows.start;
    return {sums_ + row * RunningSums::size(value_pitch_), value_pitch_};
  }

  const std::int64_t dim_, value_dim_;
  const std::int64_t query_row_;  ///< floats of a packed row of queries of a tile

  std::vector<ForwardTile> tiles_;
  std::int64_t first_place_, places_;      ///< of the packed rows of keys
  std::int64_t key_pitch_, key_row_;       ///< floats from channel to channel, and of a packed row of keys
  bool values_in_place_;                   ///< read where they are, not packed
  std::int64_t value_step_, value_row_;    ///< floats from place to place, and of a packed row
  int slide_axis_;                         ///< the outermost axis with several keys: what is packed slides along it
  std::int64_t slab_rows_;                 ///< rows of keys of one of its places
  std::int64_t capacity_;                  ///< packed slabs of one key head
  std::int64_t packed_end_;                ///< slabs before it are packed, as far as they are needed
  std::int64_t block_rows_;                ///< rows of queries of a step
  std::int64_t ring_rows_;                 ///< of them whose scores are kept at a time
  std::int64_t score_plane_, score_size_;  ///< floats of scores: of one key plane, of one row of queries
  std::int64_t packed_rows_;               ///< of keys
  std::int64_t packed_queries_;            ///< rows of queries of a tile
  bool is_segmented_;                      ///< forward::is_segmented()
  std::int64_t segment_planes_ = 1;        ///< planes of keys of a segment
  std::int64_t segment_rows_ = 0;          ///< rows of keys of one of a single plane
  KeyRows segment_{};                      ///< the packed one

  std::vector<const float*> value_rows_;  ///< at first_place_, of the rows of keys of one row of queries
  float *keys_, *value_memory_, *queries_, *scores_, *sums_, *buffer_;
};

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_FORWARD_MEMORY_INL_H_
