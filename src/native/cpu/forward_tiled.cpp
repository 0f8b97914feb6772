// The "shift" forward kernel. Lanes are consecutive queries of the last axis; keys are packed transposed, so that the
// keys of one slot are one load, shifted by the slot, which serves all rows of queries whose windows hold that row of
// keys. Scores of these rows stay in the cache until the last row of their windows has passed; the values' lanes are
// channels.
#include <algorithm>
#include <cstdlib>
#include <limits>
#include <vector>

#include "native/cpu/forward_plan.h"
#include "native/cpu/scratch.h"
#include "native/cpu/tensor.h"
#include "native/cpu/tuning.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "native/cpu/forward_tiled.cpp"
#include "hwy/foreach_target.h"
// Highway asks that these come after foreach_target.h.
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "native/cpu/dispatch.h"
#include "native/cpu/forward_region-inl.h"
#include "native/cpu/tile_products-inl.h"
#include "native/cpu/tile_rows-inl.h"
#include "native/cpu/tile_scores-inl.h"
#include "native/cpu/tile_softmax-inl.h"
#include "native/cpu/tile_values-inl.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace {

using forward::Pass;

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

class ForwardSweep {
 public:
  ForwardSweep(const Pass& pass, const Task& task)
      : pass_(pass),
        p_(pass.inputs.problem),
        region_(task),
        axes_(task.plan->sample.axes),
        group_(region_.group),
        part_(region_.part),
        heads_(p_.heads / p_.kv_heads),
        dim_(p_.head_dim),
        value_dim_(p_.value_dim),
        pitch_(round_up(dim_, kLanes)),
        value_pitch_(round_up(value_dim_, kLanes)),
        query_row_(round_up(dim_, 4) * kLanes),
        is_streamed_(p_.batch * p_.queries() * p_.heads * value_dim_ * 4 >= tuning::kStreamBytes) {}

  void run() {
    if (region_.is_empty()) return;
    for (const Tile& tile : make_tiles(axes_[2], *group_[2], part_[2].queries, kLanes)) {
      tiles_.emplace_back(tile, axes_[2].kernel_size);
    }
    plan_memory();
    Scratch scratch(scratch_bytes());
    take_memory(scratch);
    for (Step step = first_step(); step.q0 < part_[0].queries.end; step = step_after(step)) {
      is_segmented_ ? run_in_segments(step) : run_step(step);
    }
    if (is_streamed_) hwy::FlushStream();
  }

 private:
  Step first_step() const {
    const Span& q1s = part_[1].queries;
    return {part_[0].queries.start, {q1s.start, std::min(q1s.start + block_rows_, q1s.end)}};
  }
  Step step_after(const Step& step) const {
    const Span& q1s = part_[1].queries;
    if (step.rows.end < q1s.end) return {step.q0, {step.rows.end, std::min(step.rows.end + block_rows_, q1s.end)}};
    return {step.q0 + 1, first_step().rows};
  }

  void run_step(const Step& step) {
    pack(keys_of_step(step));
    const Span heads = query_heads(region_.task.kv_heads);
    for (const ForwardTile& tile : tiles_) {
      pack_queries(step, tile, heads, queries_);
      for (std::int64_t head = heads.start; head < heads.end; ++head) run_tile(head, step, tile);
    }
  }

  /// The keys of a segment are packed for all tiles of a step, whose sums so far wait in memory.
  void run_in_segments(const Step& step) {
    const auto& queries = group_[1]->queries;
    const Span& k0s = group_[0]->queries[step.q0].keys;
    const Span k1s{queries[step.rows.start].keys.start, queries[step.rows.end - 1].keys.end};
    const std::int64_t planes = std::max<std::int64_t>(segment_rows_ / size_of(k1s), 1);
    for (std::int64_t kv_head = region_.task.kv_heads.start; kv_head < region_.task.kv_heads.end; ++kv_head) {
      const Span heads = query_heads({kv_head, kv_head + 1});
      for (std::size_t t = 0; t < tiles_.size(); ++t) {
        pack_queries(step, tiles_[t], heads, queries_ + t * heads_ * block_rows_ * query_row_);
      }
      for_each_tile(heads, [&](std::int64_t, const ForwardTile&, std::int64_t index) {
        for (std::int64_t q1 = step.rows.start; q1 < step.rows.end; ++q1) sums_of(index, step, q1).clear();
      });
      segment_.k0s = {k0s.start, k0s.start};
      while (segment_.k0s.start < k0s.end) {
        segment_.k0s.end = std::min(segment_.k0s.start + planes, k0s.end);
        for (std::int64_t k1 = k1s.start; k1 < k1s.end; k1 = segment_.k1s.end) {
          segment_.k1s = {k1, std::min(k1 + segment_rows_, k1s.end)};
          pack_segment(kv_head);
          for_each_tile(heads, [&](std::int64_t head, const ForwardTile& tile, std::int64_t index) {
            add_segment(head, step, tile, index);
          });
        }
        segment_.k0s.start = segment_.k0s.end;
      }
      for_each_tile(heads, [&](std::int64_t head, const ForwardTile& tile, std::int64_t index) {
        for (std::int64_t q1 = step.rows.start; q1 < step.rows.end; ++q1) {
          finish_sums(head, step, q1, tile, sums_of(index, step, q1));
        }
      });
    }
  }

  /// Calls visit(head, tile, number of both).
  template <class Visit>
  void for_each_tile(const Span& heads, Visit&& visit) {
    for (std::size_t t = 0; t < tiles_.size(); ++t) {
      for (std::int64_t head = heads.start; head < heads.end; ++head) {
        visit(head, tiles_[t], static_cast<std::int64_t>(t) * heads_ + head - heads.start);
      }
    }
  }

  void pack_segment(std::int64_t kv_head) {
    for (std::int64_t k0 = segment_.k0s.start; k0 < segment_.k0s.end; ++k0) {
      for (std::int64_t k1 = segment_.k1s.start; k1 < segment_.k1s.end; ++k1) {
        pack_row(k0, k1, {kv_head, kv_head + 1});
      }
    }
  }

  RunningSums sums_of(std::int64_t index, const Step& step, std::int64_t q1) const {
    const std::int64_t row = index * block_rows_ + q1 - step.rows.start;
    return {sums_ + row * RunningSums::size(value_pitch_), value_pitch_};
  }

  /// Adds the keys of the segment to the sums of a tile's rows.
  void add_segment(std::int64_t head, const Step& step, const ForwardTile& tile, std::int64_t index) {
    const auto& queries = group_[1]->queries;
    const float* packed = queries_ + index * block_rows_ * query_row_;
    const Span& k1s = segment_.k1s;
    Span active{step.rows.start, step.rows.start};
    for (std::int64_t k1 = k1s.start; k1 < k1s.end; ++k1) {
      while (active.end < step.rows.end && queries[active.end].keys.start <= k1) ++active.end;
      while (active.start < active.end && queries[active.start].keys.end <= k1) ++active.start;
      multiply(head, step, tile, active, k1, segment_.k0s, k1s.start, packed);
    }
    for (std::int64_t q1 = step.rows.start; q1 < step.rows.end; ++q1) {
      const Span& window = queries[q1].keys;
      const KeyRows rows{segment_.k0s, {std::max(window.start, k1s.start), std::min(window.end, k1s.end)}};
      if (size_of(rows.k1s) <= 0) continue;
      float* scores = ring_scores(step, q1);
      const ScoreRow row = mask_and_bias(head, step.q0, q1, tile, rows, scores);
      const RunningSums sums = sums_of(index, step, q1);
      const TileVec max = max_of(row);
      alignas(64) float old_factors[kLanes];
      sums.add(max, exp2_row(row, max), factors_, old_factors);
      weigh_values(head, rows, tile, scores);
      sums.add_values(tile.count, old_factors, buffer_);
    }
  }

  void finish_sums(std::int64_t head, const Step& step, std::int64_t q1, const ForwardTile& tile,
                   const RunningSums& sums) {
    normalize(head, step, q1, tile, sums.normalizer());
    sums.scale(tile.count, factors_);
    store(head, step, q1, tile, sums.sums);
  }

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
    values_in_place_ = value.type == FloatType::float32 && value_dim_ % kLanes == 0 &&
                       std::abs(value.strides[3] * group_[2]->token_step) <= tuning::kForwardInPlaceStep;
    value_step_ = values_in_place_ ? value.strides[3] * group_[2]->token_step : value_pitch_;
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
    const std::int64_t row_bytes = 4 * (key_row_ + (values_in_place_ ? 0 : value_row_));
    segment_rows_ = std::max<std::int64_t>(
        std::min(tuning::kSegmentScoreBytes / (4 * block_rows_ * slots), tuning::kSegmentPackedBytes / row_bytes), 1);
    // Not more than there are.
    std::int64_t most = 1;
    for (Step step = first_step(); step.rows.start < part_[1].queries.end && step.q0 == first_step().q0;
         step = step_after(step)) {
      const auto& queries = group_[1]->queries;
      most = std::max(most, queries[step.rows.end - 1].keys.end - queries[step.rows.start].keys.start);
    }
    segment_rows_ = std::min(segment_rows_, planes * most);
    score_size_ = segment_rows_ * slots;
    packed_rows_ = segment_rows_;
    packed_queries_ = static_cast<std::int64_t>(tiles_.size()) * heads_ * block_rows_;
  }

  std::int64_t scratch_bytes() const {
    return Scratch::bytes<float>(packed_rows_ * key_row_) +
           Scratch::bytes<float>(values_in_place_ ? 0 : packed_rows_ * value_row_) +
           Scratch::bytes<float>(packed_queries_ * query_row_) +
           Scratch::bytes<float>(is_segmented_ ? packed_queries_ * RunningSums::size(value_pitch_) : 0) +
           Scratch::bytes<float>(ring_rows_ * score_size_) +
           Scratch::bytes<float>(kLanes * std::max(pitch_, value_pitch_)) + 2 * Scratch::bytes<float>(kLanes);
  }

  void take_memory(Scratch& scratch) {
    keys_ = scratch.take<float>(packed_rows_ * key_row_);
    value_memory_ = scratch.take<float>(values_in_place_ ? 0 : packed_rows_ * value_row_);
    queries_ = scratch.take<float>(packed_queries_ * query_row_);
    sums_ = scratch.take<float>(is_segmented_ ? packed_queries_ * RunningSums::size(value_pitch_) : 0);
    scores_ = scratch.take<float>(ring_rows_ * score_size_);
    buffer_ = scratch.take<float>(kLanes * std::max(pitch_, value_pitch_));
    factors_ = scratch.take<float>(kLanes);
    lse_ = scratch.take<float>(kLanes);
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
    const TensorRows rows = region_.key_rows(pass_.inputs.value, kv_head, k0, k1, part_[2].keys.start);
    return reinterpret_cast<const float*>(rows.data) - (part_[2].keys.start - first_place_) * value_step_;
  }

  /// Slabs (planes of keys, or rows where there is one plane) that the windows of a step hold.
  Span keys_of_step(const Step& step) const {
    if (slide_axis_ == 0) return group_[0]->queries[step.q0].keys;
    const auto& queries = group_[1]->queries;
    return {queries[step.rows.start].keys.start, queries[step.rows.end - 1].keys.end};
  }

  /// Calls visit(k0, k1) for the rows of keys of a slab.
  template <class Visit>
  void for_each_row(std::int64_t slab, Visit&& visit) const {
    if (slide_axis_ == 1) return visit(part_[0].keys.start, slab);
    for (std::int64_t k1 = part_[1].keys.start; k1 < part_[1].keys.end; ++k1) visit(slab, k1);
  }

  /// Packs the slabs of a step that are not yet packed, over those that no window holds any more.
  void pack(const Span& needed) {
    packed_end_ = std::max(packed_end_, needed.start);
    for (; packed_end_ < needed.end; ++packed_end_) {
      for_each_row(packed_end_, [&](std::int64_t k0, std::int64_t k1) { pack_row(k0, k1, region_.task.kv_heads); });
    }
  }

  /// All heads of a few tokens before the next tokens: the order of memory.
  void pack_row(std::int64_t k0, std::int64_t k1, const Span& heads) {
    const Span& k2s = part_[2].keys;
    for (std::int64_t k2 = k2s.start; k2 < k2s.end; k2 += kLanes) {
      const std::int64_t count = std::min<std::int64_t>(kLanes, k2s.end - k2), place = k2 - first_place_;
      for (std::int64_t head = heads.start; head < heads.end; ++head) {
        pack_transposed(region_.key_rows(pass_.inputs.key, head, k0, k1, k2), count, 1.0f,
                        packed_keys(head, k0, k1) + place, key_pitch_);
      }
      if (values_in_place_) continue;
      for (std::int64_t head = heads.start; head < heads.end; ++head) {
        load_rows(region_.key_rows(pass_.inputs.value, head, k0, k1, k2), count, value_dim_,
                  value_memory_ + row_index(head, k0, k1) * value_row_ + place * value_pitch_, value_pitch_);
      }
    }
  }

  /// Queries of a tile: all rows of a step, some heads.
  void pack_queries(const Step& step, const ForwardTile& tile, const Span& heads, float* to) {
    for (std::int64_t q1 = step.rows.start; q1 < step.rows.end; ++q1) {
      for (std::int64_t head = heads.start; head < heads.end; ++head) {
        pack_transposed(region_.query_rows(pass_.inputs.query, head, step.q0, q1, tile.query), tile.count,
                        static_cast<float>(p_.scale) * kLog2E,
                        to + ((head - heads.start) * block_rows_ + q1 - step.rows.start) * query_row_, kLanes);
      }
    }
  }

  Span query_heads(const Span& kv_heads) const { return {kv_heads.start * heads_, kv_heads.end * heads_}; }

  /// to[channel * pitch + lane] = factor * row[lane][channel]; lanes from `count` on hold anything.
  void pack_transposed(const TensorRows& rows, std::int64_t count, float factor, float* to, std::int64_t pitch) {
    if (count == kLanes && is_plain(rows, dim_)) {
      transpose_in(reinterpret_cast<const float*>(rows.data), rows.stride, dim_, factor, to, pitch);
    } else {
      load_rows(rows, count, dim_, buffer_, pitch_);
      transpose_in(buffer_, pitch_, round_up(dim_, 4), factor, to, pitch);
    }
  }

  /// Scores of a row of queries: [plane][row of keys of its window][slot][lane].
  float* ring_scores(const Step& step, std::int64_t q1) const {
    return scores_ + (q1 - step.rows.start) % ring_rows_ * score_size_;
  }

  /// Rows of keys pass by; a row of queries is finished when its last one has.
  void run_tile(std::int64_t head, const Step& step, const ForwardTile& tile) {
    const auto& queries = group_[1]->queries;
    Span active{step.rows.start, step.rows.start};  // rows of queries whose windows hold the row of keys
    const float* packed = queries_ + (head - region_.task.kv_heads.start * heads_) * block_rows_ * query_row_;
    const Span& k0s = group_[0]->queries[step.q0].keys;
    for (std::int64_t k1 = queries[step.rows.start].keys.start; active.start < step.rows.end; ++k1) {
      while (active.end < step.rows.end && queries[active.end].keys.start <= k1) ++active.end;
      multiply(head, step, tile, active, k1, k0s, part_[1].keys.start, packed);
      for (; active.start < active.end && queries[active.start].keys.end <= k1 + 1; ++active.start) {
        finish_row(head, step, active.start, tile);
      }
    }
  }

  /// Scores of the active rows of queries with the rows of keys k1 of some planes. Scores of a row begin with its first
  /// key, or with `first_k1` if that comes later. `packed` are the step's queries.
  void multiply(std::int64_t head, const Step& step, const ForwardTile& tile, const Span& active, std::int64_t k1,
                const Span& k0s, std::int64_t first_k1, const float* packed) {
    const auto& queries = group_[1]->queries;
    const std::int64_t slots = axes_[2].kernel_size;
    for_each_piece(size_of(active), kMostScoreRows, [&](std::int64_t first, int rows) {
      const float* query_rows[kMostScoreRows];
      float* score_rows[kMostScoreRows];
      std::int64_t score_planes[kMostScoreRows];
      for (int r = 0; r < rows; ++r) {
        const std::int64_t q1 = active.start + first + r;
        const Span& window = queries[q1].keys;
        query_rows[r] = packed + (q1 - step.rows.start) * query_row_;
        score_rows[r] = ring_scores(step, q1) + (k1 - std::max(window.start, first_k1)) * slots * kLanes;
        score_planes[r] = plane_of(window);
      }
      ScoreCall call{nullptr, key_pitch_, dim_, tile.offset, query_rows, score_rows, 0};
      for (std::int64_t k0 = k0s.start; k0 < k0s.end; ++k0) {
        call.keys = packed_keys(head / heads_, k0, k1) + tile.slot0 - first_place_;
        for_each_piece(slots, most_score_slots(rows), [&](std::int64_t slot, int slot_count) {
          call.slot = slot;
          kMultiplyScores[rows - 1][slot_count - 1][tile.is_shift](call);
        });
        for (int r = 0; r < rows; ++r) score_rows[r] += score_planes[r];
      }
    });
  }

  /// Floats of the scores of one plane of keys.
  std::int64_t plane_of(const Span& window) const {
    if (!is_segmented_) return score_plane_;
    const Span& k1s = segment_.k1s;
    return (std::min(window.end, k1s.end) - std::max(window.start, k1s.start)) * axes_[2].kernel_size * kLanes;
  }

  /// Softmax and values of one row of a tile.
  void finish_row(std::int64_t head, const Step& step, std::int64_t q1, const ForwardTile& tile) {
    const KeyRows rows{group_[0]->queries[step.q0].keys, group_[1]->queries[q1].keys};
    float* scores = ring_scores(step, q1);
    const ScoreRow row = mask_and_bias(head, step.q0, q1, tile, rows, scores);
    const TileVec max = max_of(row);
    normalize(head, step, q1, tile, Normalizer(max, exp2_row(row, max)));
    weigh_values(head, rows, tile, scores);
    store(head, step, q1, tile, buffer_);
  }

  /// Makes logits of the products of a row of a tile with some rows of keys.
  ScoreRow mask_and_bias(std::int64_t head, std::int64_t q0, std::int64_t q1, const ForwardTile& tile,
                         const KeyRows& rows, float* scores) const {
    if (pass_.inputs.rpb != nullptr) add_bias(head, q0, q1, tile, rows, scores);
    const std::int64_t plane = plane_of(group_[1]->queries[q1].keys);
    if (tile.is_ragged) mask(tile, rows, plane, scores);
    return {scores, size_of(rows.k0s), plane, size_of(rows.k1s) * axes_[2].kernel_size};
  }

  /// buffer_ = factors_ * the sum of the values of some rows of keys, weighted by exponentials of scores
  void weigh_values(std::int64_t head, const KeyRows& rows, const ForwardTile& tile, const float* scores) {
    const std::int64_t slots = axes_[2].kernel_size;
    auto next_row = value_rows_.begin();
    for (std::int64_t k0 = rows.k0s.start; k0 < rows.k0s.end; ++k0) {
      for (std::int64_t k1 = rows.k1s.start; k1 < rows.k1s.end; ++k1) *next_row++ = values_of(head / heads_, k0, k1);
    }
    ValueRows row{};
    row.row_scores = slots * kLanes;
    row.plane_scores = is_segmented_ ? size_of(rows.k1s) * row.row_scores : score_plane_;
    row.row_values = value_rows_.data();
    row.place_values = value_step_;
    row.planes = size_of(rows.k0s);
    row.rows = size_of(rows.k1s);
    row.slots = slots;
    row.pitch = value_pitch_;
    for (const QueryWindows& windows : tile.windows) {
      for_each_value_part(value_pitch_, [&]<int kVectors>(std::integral_constant<int, kVectors>, std::int64_t channel) {
        row.probabilities = scores + windows.first;
        row.factor = factors_ + windows.first;
        row.value = (tile.slot0 - first_place_) * value_step_ + channel;
        row.sums = buffer_ + windows.first * value_pitch_ + channel;
        add_values<kVectors>(row, windows);
      });
    }
  }

  /// Reciprocals of the sums of exponentials, and the log-sum-exp.
  void normalize(std::int64_t head, const Step& step, std::int64_t q1, const ForwardTile& tile,
                 const Normalizer& normalizer) {
    const TileTag d;
    has_empty_ = normalizer.has_empty;
    hn::Store(normalizer.factor, d, factors_);
    hn::Store(normalizer.lse, d, lse_);
    const Place output = region_.output_of(step.q0, q1, tile.query);
    float* lse = pass_.lse + output_grid(p_).index(region_.task.plan->batch, output) * p_.heads + head;
    for (int lane = 0; lane < tile.count; ++lane) lse[lane * region_.query_step() * p_.heads] = lse_[lane];
  }

  void store(std::int64_t head, const Step& step, std::int64_t q1, const ForwardTile& tile, float* rows) const {
    if (has_empty_) clear_empty_rows(lse_, tile.count, rows, value_pitch_);
    store_rows(rows, value_pitch_, tile.count, value_dim_, region_.out_rows(pass_.out, head, step.q0, q1, tile.query),
               is_streamed_);
  }

  void add_bias(std::int64_t head, std::int64_t q0, std::int64_t q1, const Tile& tile, const KeyRows& rows,
                float* scores) const {
    const TileTag d;
    const hn::Rebind<std::int32_t, TileTag> di;
    const auto &outer = group_[0]->queries[q0], &inner = group_[1]->queries[q1];
    const std::int64_t slots = axes_[2].kernel_size;
    const std::int64_t bias1 = 2 * axes_[1].kernel_size - 1, bias2 = 2 * axes_[2].kernel_size - 1;
    const auto log2e = hn::Set(d, kLog2E);
    const std::int64_t plane = plane_of(inner.keys);
    for (std::int64_t k0 = rows.k0s.start; k0 < rows.k0s.end; ++k0) {
      for (std::int64_t k1 = rows.k1s.start; k1 < rows.k1s.end; ++k1) {
        const std::int64_t entry0 = rpb_index(axes_[0], outer.place, k0), entry1 = rpb_index(axes_[1], inner.place, k1);
        const std::int64_t row = head * (2 * axes_[0].kernel_size - 1) + entry0;
        const float* bias = pass_.inputs.rpb + (row * bias1 + entry1) * bias2;
        float* s = scores + (k0 - rows.k0s.start) * plane + (k1 - rows.k1s.start) * slots * kLanes;
        for (std::int64_t slot = tile.first_slot; slot < slots; ++slot) {
          const auto entry = tile.one_bias ? hn::Set(d, bias[tile.bias[0] + slot])
                                           : hn::GatherIndex(d, bias + slot, hn::LoadU(di, tile.bias));
          hn::Store(hn::MulAdd(entry, log2e, hn::Load(d, s + slot * kLanes)), d, s + slot * kLanes);
        }
      }
    }
  }

  void mask(const Tile& tile, const KeyRows& rows, std::int64_t plane_scores, float* scores) const {
    const TileTag d;
    const hn::Rebind<std::int32_t, TileTag> di;
    const auto empty = hn::LoadU(di, tile.empty_slots);
    const auto lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
    const std::int64_t slots = axes_[2].kernel_size;
    for (std::int64_t plane = 0; plane < size_of(rows.k0s); ++plane) {
      for (std::int64_t row = 0; row < size_of(rows.k1s); ++row) {
        float* s = scores + plane * plane_scores + row * slots * kLanes;
        for (std::int64_t slot = 0; slot < slots; ++slot, s += kLanes) {
          const auto is_empty = hn::RebindMask(d, hn::Gt(empty, hn::Set(di, static_cast<std::int32_t>(slot))));
          hn::Store(hn::IfThenElse(is_empty, lowest, hn::Load(d, s)), d, s);
        }
      }
    }
  }

  const Pass& pass_;
  const Problem& p_;
  const Region region_;
  const std::array<Axis, kAxes>& axes_;
  const AxisGroup* const* const group_;
  const AxisPart* const part_;
  const std::int64_t heads_;  ///< query heads of the key head
  const std::int64_t dim_, value_dim_, pitch_, value_pitch_;
  const std::int64_t query_row_;  ///< floats of a packed row of queries of a tile
  const bool is_streamed_;        ///< results are too large to stay in a cache

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
  std::int64_t segment_rows_ = 0;          ///< rows of keys of a segment, at most
  KeyRows segment_{};                      ///< the packed one

  std::vector<const float*> value_rows_;  ///< at first_place_, of the rows of keys of one row of queries
  bool has_empty_;                        ///< a query of the tile has no logit but -inf
  float *keys_, *value_memory_, *queries_, *scores_, *sums_, *buffer_, *factors_, *lse_;
};

void run_task_of_target(const Pass& pass, const Task& task) {
  ForwardSweep(pass, task).run();
}

}  // namespace
}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace natten::cpu::forward {

HWY_EXPORT(run_task_of_target);

void run_task(const Pass& pass, const Task& task) {
  NATTEN_DISPATCH(run_task_of_target)(pass, task);
}

}  // namespace natten::cpu::forward
#endif  // HWY_ONCE
