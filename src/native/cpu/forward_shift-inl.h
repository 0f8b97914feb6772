// The "shift" forward kernel. Lanes are consecutive queries of the last axis; keys are packed transposed, so that the
// keys of one slot are one load, shifted by the slot, which serves all rows of queries whose windows hold that row of
// keys. Scores of these rows stay in the cache until the last row of their windows has passed; the values' lanes are
// channels. Included once per SIMD target.
#if defined(NATTEN_NATIVE_CPU_FORWARD_SHIFT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_FORWARD_SHIFT_INL_H_
#undef NATTEN_NATIVE_CPU_FORWARD_SHIFT_INL_H_
#else
#define NATTEN_NATIVE_CPU_FORWARD_SHIFT_INL_H_
#endif

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <vector>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "native/cpu/forward_memory-inl.h"
#include "native/cpu/tile_products-inl.h"
#include "native/cpu/tile_rows-inl.h"
#include "native/cpu/tile_softmax-inl.h"
#include "native/cpu/tile_values-inl.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {

class ForwardSweep : ForwardMemory {
 public:
  ForwardSweep(const Pass& pass, const Task& task) : ForwardMemory(pass, task) {}

  void run() {
    if (region_.is_empty()) return;
    for (const Tile& tile : make_tiles(axes_[2], *group_[2], part_[2].queries, kLanes)) {
      tiles_.emplace_back(tile, axes_[2].kernel_size);
    }
    plan_memory();
    const Scratch memory([&](Scratch& scratch) { take_memory(scratch); });
    for (Step step = first_step(); step.q0 < part_[0].queries.end; step = step_after(step)) {
      is_segmented_ ? run_in_segments(step) : run_step(step);
    }
    if (is_streamed_) hwy::FlushStream();
  }

 private:
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
        segment_.k0s.end = std::min(group_[0]->block_end(segment_.k0s.start, segment_planes_), k0s.end);
        for (std::int64_t k1 = k1s.start; k1 < k1s.end; k1 = segment_.k1s.end) {
          segment_.k1s = {k1, k1s.end};
          if (segment_planes_ == 1) segment_.k1s.end = std::min(group_[1]->block_end(k1, segment_rows_), k1s.end);
          pack_segment(kv_head);
          for_each_tile(heads, [&](std::int64_t head, const ForwardTile& tile, std::int64_t index) {
            add_segment(head, step, tile, index);
          });
        }
        segment_.k0s.start = segment_.k0s.end;
      }
      for_each_tile(heads, [&](std::int64_t head, const ForwardTile& tile, std::int64_t index) {
        for (std::int64_t q1 = step.rows.start; q1 < step.rows.end; ++q1) {
          finish_sums(head, step, q1, tile, index);
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
      sums.add(max, exp2_row(row, max), end_.factors, old_factors);
      weigh_values(head, rows, tile, scores);
      sums.add_values(tile.count, old_factors, buffer_);
    }
  }

  void finish_sums(std::int64_t head, const Step& step, std::int64_t q1, const ForwardTile& tile, std::int64_t index) {
    const TileTag d;
    const RunningSums sums = sums_of(index, step, q1);
    normalize(head, queries_ + (index * block_rows_ + q1 - step.rows.start) * query_row_, hn::Load(d, sums.maxima()),
              hn::Load(d, sums.totals()));
    sums.scale(tile.count, end_.factors);
    store(head, step.q0, q1, tile.query, tile.count, sums.sums, is_streamed_);
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
        pack_transposed(region_.key_rows(pass_.inputs.key, head, k0, k1, k2), count, dim_, 1.0f, buffer_,
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
        pack_transposed(region_.query_rows(pass_.inputs.query, head, step.q0, q1, tile.query), tile.count, dim_,
                        static_cast<float>(p_.scale) * kLog2E, buffer_,
                        to + ((head - heads.start) * block_rows_ + q1 - step.rows.start) * query_row_, kLanes);
      }
    }
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
        finish_row(head, step, active.start, tile, packed + (active.start - step.rows.start) * query_row_);
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
        multiply_scores(call, rows, static_cast<int>(slots), tile.is_shift);
        for (int r = 0; r < rows; ++r) score_rows[r] += score_planes[r];
      }
    });
  }

  /// Softmax and values of one row of a tile, whose packed queries are `packed`.
  void finish_row(std::int64_t head, const Step& step, std::int64_t q1, const ForwardTile& tile, const float* packed) {
    const KeyRows rows{group_[0]->queries[step.q0].keys, group_[1]->queries[q1].keys};
    float* scores = ring_scores(step, q1);
    const ScoreRow row = mask_and_bias(head, step.q0, q1, tile, rows, scores);
    const TileVec max = max_of(row);
    normalize(head, packed, max, exp2_row(row, max));
    weigh_values(head, rows, tile, scores);
    store(head, step.q0, q1, tile.query, tile.count, buffer_, is_streamed_);
  }

  /// Makes logits of the products of a row of a tile with some rows of keys.
  ScoreRow mask_and_bias(std::int64_t head, std::int64_t q0, std::int64_t q1, const ForwardTile& tile,
                         const KeyRows& rows, float* scores) const {
    if (pass_.inputs.rpb != nullptr) add_bias(head, q0, q1, tile, rows, scores);
    const std::int64_t plane = plane_of(group_[1]->queries[q1].keys);
    if (tile.is_ragged) mask(tile, rows, plane, scores);
    return {scores, size_of(rows.k0s), plane, size_of(rows.k1s) * axes_[2].kernel_size};
  }

  /// buffer_ = factors * the sum of the values of some rows of keys, weighted by exponentials of scores
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
      for_each_vectors<kMostVectors>(value_pitch_,
                                     [&]<int kVectors>(std::integral_constant<int, kVectors>, std::int64_t channel) {
                                       row.probabilities = scores + windows.first;
                                       row.factor = end_.factors + windows.first;
                                       row.value = (tile.slot0 - first_place_) * value_step_ + channel;
                                       row.sums = buffer_ + windows.first * value_pitch_ + channel;
                                       add_values<kVectors>(row, windows);
                                     });
    }
  }

  void add_bias(std::int64_t head, std::int64_t q0, std::int64_t q1, const Tile& tile, const KeyRows& rows,
                float* scores) const {
    const TileTag d;
    const hn::Rebind<std::int32_t, TileTag> di;
    const std::int64_t slots = axes_[2].kernel_size;
    const auto log2e = hn::Set(d, kLog2E);
    const std::int64_t plane = plane_of(group_[1]->queries[q1].keys);
    for (std::int64_t k0 = rows.k0s.start; k0 < rows.k0s.end; ++k0) {
      for (std::int64_t k1 = rows.k1s.start; k1 < rows.k1s.end; ++k1) {
        const float* bias = bias_of(head, q0, q1, k0, k1);
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
};

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_FORWARD_SHIFT_INL_H_
