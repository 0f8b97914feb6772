// The "shift" forward kernel. Lanes are consecutive queries of the last axis; keys are packed transposed, so that the
// keys of one slot are one load, shifted by the slot, which serves all rows of queries whose windows hold that row of
// keys. Probabilities of a tile stay in the cache; the values' lanes are channels.
#include <algorithm>
#include <cstdlib>
#include <cstring>
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
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "native/cpu/backward_tiles-inl.h"
#include "native/cpu/dispatch.h"
#include "native/cpu/tile_rows-inl.h"
#include "native/cpu/tile_softmax-inl.h"
#include "native/cpu/tile_values-inl.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace {

using backward::size_of;
using backward::Tile;
using forward::AxisGroup;
using forward::AxisPart;
using forward::Pass;
using forward::Span;
using forward::Task;

constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// A tile with what its rows need to know again and again.
struct ForwardTile : Tile {
  bool is_ragged = false;  ///< some windows have empty slots
  std::vector<QueryWindows> windows;

  ForwardTile(const Tile& tile, std::int64_t slots) : Tile(tile) {
    for (int q = 0; q < count; ++q) is_ragged |= empty_slots[q] > 0;
    for (int q = 0; q < count; q += kQueries) windows.emplace_back(tile, q, slots);
  }
};

class ForwardSweep {
 public:
  ForwardSweep(const Pass& pass, const Task& task)
      : pass_(pass),
        p_(pass.inputs.problem),
        task_(task),
        axes_(task.plan->sample.axes),
        group_{&task.plan->groups[0][task.group[0]], &task.plan->groups[1][task.group[1]],
               &task.plan->groups[2][task.group[2]]},
        heads_(p_.heads / p_.kv_heads),
        dim_(p_.head_dim),
        value_dim_(p_.value_dim),
        pitch_(round_up(dim_, kLanes)),
        value_pitch_(round_up(value_dim_, kLanes)) {
    for (int a = 0; a < kAxes; ++a) part_[a] = make_part(*group_[a], task.owned[a], {true, false}, true);
  }

  void run() {
    for (const AxisPart& part : part_) {
      if (size_of(part.queries) <= 0) return;
    }
    for (const Tile& tile : make_tiles(axes_[2], *group_[2], part_[2].queries, kLanes)) {
      tiles_.emplace_back(tile, axes_[2].kernel_size);
    }
    plan_memory();
    Scratch scratch(scratch_bytes());
    take_memory(scratch);
    const Span &q0s = part_[0].queries, &q1s = part_[1].queries;
    for (std::int64_t q0 = q0s.start; q0 < q0s.end; ++q0) {
      for (std::int64_t q1 = q1s.start; q1 < q1s.end; q1 += block_rows_) {
        const Span rows{q1, std::min(q1 + block_rows_, q1s.end)};
        pack(keys_of_step(q0, rows));
        for (std::int64_t head = 0; head < heads_; ++head) {
          for (const ForwardTile& tile : tiles_) run_tile(head, q0, rows, tile);
        }
      }
    }
  }

 private:
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
    slide_axis_ = size_of(part_[0].keys) > 1 ? 0 : 1;
    slab_rows_ = slide_axis_ == 0 ? size_of(part_[1].keys) : 1;
    const Tensor& value = pass_.inputs.value;
    values_in_place_ = value.type == FloatType::float32 && value_dim_ % kLanes == 0 &&
                       std::abs(value.strides[3] * group_[2]->token_step) <= tuning::kForwardInPlaceStep;
    value_step_ = values_in_place_ ? value.strides[3] * group_[2]->token_step : value_pitch_;
    value_row_ = values_in_place_ ? value.strides[2] * group_[1]->token_step : places_ * value_pitch_;
    value_plane_ = values_in_place_ ? value.strides[1] * group_[0]->token_step : value_row_ * size_of(part_[1].keys);

    const std::int64_t slots = axes_[2].kernel_size;
    const std::int64_t pieces = (slots + kMostSlots - 1) / kMostSlots;
    block_rows_ =
        std::min<std::int64_t>(most_rows(static_cast<int>((slots + pieces - 1) / pieces)), size_of(part_[1].queries));
    // Rows of keys that any window of a block of rows may hold.
    std::int64_t planes = 1, rows = 1;
    const auto& outer = group_[0]->queries;
    for (std::int64_t q = part_[0].queries.start; q < part_[0].queries.end; ++q) {
      planes = std::max(planes, size_of(outer[q].keys));
    }
    const auto& inner = group_[1]->queries;
    for (std::int64_t q = part_[1].queries.start; q < part_[1].queries.end; ++q) {
      const std::int64_t last = std::min(q + block_rows_, part_[1].queries.end) - 1;
      rows = std::max(rows, inner[last].keys.end - inner[q].keys.start);
    }
    // Slabs of keys that a step needs, and more so that they seldom move.
    const std::int64_t slabs = size_of(part_[slide_axis_].keys), needed = slide_axis_ == 0 ? planes : rows;
    const std::int64_t slab_bytes = 4 * slab_rows_ * (key_row_ + (values_in_place_ ? 0 : value_row_));
    capacity_ = std::min(slabs, std::max(2 * needed, tuning::kForwardPackedBytes / slab_bytes));
    packed_ = {part_[slide_axis_].keys.start, part_[slide_axis_].keys.start};
    score_plane_ = rows * slots * kLanes;
    score_size_ = planes * score_plane_;
  }

  std::int64_t scratch_bytes() const {
    return Scratch::bytes<float>(capacity_ * slab_rows_ * key_row_) +
           Scratch::bytes<float>(values_in_place_ ? 0 : capacity_ * slab_rows_ * value_row_) +
           Scratch::bytes<float>(block_rows_ * round_up(dim_, 4) * kLanes) +
           Scratch::bytes<float>(block_rows_ * score_size_) +
           Scratch::bytes<float>(kLanes * std::max(pitch_, value_pitch_)) + 2 * Scratch::bytes<float>(kLanes);
  }

  void take_memory(Scratch& scratch) {
    keys_ = scratch.take<float>(capacity_ * slab_rows_ * key_row_);
    value_memory_ = scratch.take<float>(values_in_place_ ? 0 : capacity_ * slab_rows_ * value_row_);
    values_ = value_memory_;
    if (values_in_place_) {
      const Span &k0s = part_[0].keys, &k1s = part_[1].keys;
      const TensorRows rows = token_rows(pass_.inputs.value, k0s.start, k1s.start, part_[2].keys.start);
      values_ = reinterpret_cast<const float*>(rows.data) - (part_[2].keys.start - first_place_) * value_step_;
    }
    queries_ = scratch.take<float>(block_rows_ * round_up(dim_, 4) * kLanes);
    scores_ = scratch.take<float>(block_rows_ * score_size_);
    buffer_ = scratch.take<float>(kLanes * std::max(pitch_, value_pitch_));
    factors_ = scratch.take<float>(kLanes);
    lse_ = scratch.take<float>(kLanes);
  }

  /// Number of a row of keys among the packed ones.
  std::int64_t row_index(std::int64_t k0, std::int64_t k1) const {
    return slide_axis_ == 0 ? (k0 - packed_.start) * slab_rows_ + k1 - part_[1].keys.start : k1 - packed_.start;
  }

  /// Slabs (planes of keys, or rows where there is one plane) that the windows of some rows of queries hold.
  Span keys_of_step(std::int64_t q0, const Span& rows) const {
    if (slide_axis_ == 0) return group_[0]->queries[q0].keys;
    return {group_[1]->queries[rows.start].keys.start, group_[1]->queries[rows.end - 1].keys.end};
  }

  /// Packs the slabs of a step that are not yet packed. When memory is used up, those still needed move to its start.
  void pack(const Span& needed) {
    if (needed.end > packed_.start + capacity_) {
      const std::int64_t from = (needed.start - packed_.start) * slab_rows_;
      const std::int64_t rows = std::max<std::int64_t>(packed_.end - needed.start, 0) * slab_rows_;
      if (rows > 0) {
        std::memmove(keys_, keys_ + from * key_row_, rows * key_row_ * sizeof(float));
        if (!values_in_place_) {
          std::memmove(value_memory_, value_memory_ + from * value_row_, rows * value_row_ * sizeof(float));
        }
      }
      packed_ = {needed.start, std::max(packed_.end, needed.start)};
    }
    for (; packed_.end < needed.end; ++packed_.end) {
      if (slide_axis_ == 1) {
        pack_row(part_[0].keys.start, packed_.end);
      } else {
        for (std::int64_t k1 = part_[1].keys.start; k1 < part_[1].keys.end; ++k1) pack_row(packed_.end, k1);
      }
    }
  }

  TensorRows token_rows(const Tensor& tensor, std::int64_t k0, std::int64_t k1, std::int64_t k2) const {
    const Place at{group_[0]->token(k0), group_[1]->token(k1), group_[2]->token(k2)};
    return {row_of(tensor, task_.plan->batch, at, task_.kv_head), tensor.strides[3] * group_[2]->token_step,
            tensor.type};
  }

  void pack_row(std::int64_t k0, std::int64_t k1) {
    const Span& k2s = part_[2].keys;
    const std::int64_t row = row_index(k0, k1);
    for (std::int64_t k2 = k2s.start; k2 < k2s.end; k2 += kLanes) {
      const std::int64_t count = std::min<std::int64_t>(kLanes, k2s.end - k2);
      pack_transposed(token_rows(pass_.inputs.key, k0, k1, k2), count, 1.0f, keys_ + row * key_row_ + k2 - first_place_,
                      key_pitch_);
    }
    if (values_in_place_) return;
    load_rows(token_rows(pass_.inputs.value, k0, k1, k2s.start), size_of(k2s), value_dim_,
              value_memory_ + row * value_row_ + (k2s.start - first_place_) * value_pitch_, value_pitch_);
  }

  /// to[channel * pitch + lane] = factor * row[lane][channel]; lanes from `count` on hold anything.
  void pack_transposed(const TensorRows& rows, std::int64_t count, float factor, float* to, std::int64_t pitch) {
    if (count == kLanes && is_plain(rows, dim_)) {
      transpose_in(reinterpret_cast<const float*>(rows.data), rows.stride, dim_, factor, to, pitch);
    } else {
      load_rows(rows, count, dim_, buffer_, pitch_);
      transpose_in(buffer_, pitch_, round_up(dim_, 4), factor, to, pitch);
    }
  }

  Place place_of(std::int64_t q0, std::int64_t q1, std::int64_t q2) const {
    return {group_[0]->queries[q0].output, group_[1]->queries[q1].output, group_[2]->queries[q2].output};
  }

  /// Distance, in output positions, of two queries of the last axis.
  std::int64_t query_step() const {
    const auto& queries = group_[2]->queries;
    return queries.size() > 1 ? queries[1].output - queries[0].output : 1;
  }

  void run_tile(std::int64_t head, std::int64_t q0, const Span& rows, const ForwardTile& tile) {
    const std::int64_t query_head = task_.kv_head * heads_ + head;
    for (std::int64_t q1 = rows.start; q1 < rows.end; ++q1) {
      const Place output = place_of(q0, q1, tile.query);
      const Place token{output[0] * axes_[0].stride, output[1] * axes_[1].stride, output[2] * axes_[2].stride};
      const Tensor& query = pass_.inputs.query;
      pack_transposed({row_of(query, task_.plan->batch, token, query_head),
                       query.strides[3] * axes_[2].stride * query_step(), query.type},
                      tile.count, static_cast<float>(p_.scale) * kLog2E,
                      queries_ + (q1 - rows.start) * round_up(dim_, 4) * kLanes, kLanes);
    }
    multiply(q0, rows, tile);
    for (std::int64_t q1 = rows.start; q1 < rows.end; ++q1) finish_row(query_head, q0, q1, rows, tile);
  }

  /// Scores of all rows: [row][plane][row of keys of the block's windows][slot][lane].
  void multiply(std::int64_t q0, const Span& rows, const ForwardTile& tile) {
    const auto& queries = group_[1]->queries;
    const Span& k0s = group_[0]->queries[q0].keys;
    const std::int64_t first_key = queries[rows.start].keys.start, end_key = queries[rows.end - 1].keys.end;
    const std::int64_t slots = axes_[2].kernel_size;
    float* query_rows[kMostRows];
    for (std::int64_t r = 0; r < size_of(rows); ++r) query_rows[r] = queries_ + r * round_up(dim_, 4) * kLanes;
    for (std::int64_t k0 = k0s.start; k0 < k0s.end; ++k0) {
      Span active{rows.start, rows.start};  // rows whose windows hold the row of keys
      for (std::int64_t k1 = first_key; k1 < end_key; ++k1) {
        while (queries[active.start].keys.end <= k1) ++active.start;
        while (active.end < rows.end && queries[active.end].keys.start <= k1) ++active.end;
        if (size_of(active) <= 0) continue;
        const float* keys = keys_ + row_index(k0, k1) * key_row_ + tile.slot0 - first_place_;
        float* scores = scores_ + (k0 - k0s.start) * score_plane_ + (k1 - first_key) * slots * kLanes +
                        (active.start - rows.start) * score_size_;
        for_each_piece(slots, kMostSlots, [&](std::int64_t slot, int slot_count) {
          for_each_piece(size_of(active), most_rows(slot_count), [&](std::int64_t row, int row_count) {
            TileCall call{};
            call.keys = keys + slot;
            call.pitch = key_pitch_;
            call.channels = dim_;
            call.offsets = tile.offset;
            call.queries = query_rows + active.start - rows.start + row;
            call.scores = scores + row * score_size_ + slot * kLanes;
            call.score_row = score_size_;
            kMultiply[slot_count - 1][row_count - 1][tile.is_shift](call);
          });
        });
      }
    }
  }

  /// Softmax and values of one row of a tile.
  void finish_row(std::int64_t head, std::int64_t q0, std::int64_t q1, const Span& rows, const ForwardTile& tile) {
    const TileTag d;
    const std::int64_t slots = axes_[2].kernel_size;
    const Span &k0s = group_[0]->queries[q0].keys, &k1s = group_[1]->queries[q1].keys;
    float* scores = scores_ + (q1 - rows.start) * score_size_ +
                    (k1s.start - group_[1]->queries[rows.start].keys.start) * slots * kLanes;
    if (pass_.inputs.rpb != nullptr) add_bias(head, q0, q1, tile, scores);
    if (tile.is_ragged) mask(tile, k0s, k1s, scores);

    const ScoreRow row{scores, size_of(k0s), score_plane_, size_of(k1s) * slots};
    const TileVec max = max_of(row);
    const TileVec sum = exp2_row(row, max);
    hn::Store(hn::Div(hn::Set(d, 1.0f), sum), d, factors_);
    const auto log_sum = hn::MulAdd(max, hn::Set(d, kLn2), hn::Log(d, sum));
    hn::Store(hn::IfThenElse(hn::IsNaN(sum), sum, log_sum), d, lse_);  // Log makes a number of NaN

    ValueRows call;
    call.plane_scores = score_plane_;
    call.row_scores = slots * kLanes;
    call.plane_values = value_plane_;
    call.row_values = value_row_;
    call.place_values = value_step_;
    call.planes = size_of(k0s);
    call.rows = size_of(k1s);
    call.slots = slots;
    call.pitch = value_pitch_;
    const std::int64_t first_row = values_in_place_ ? (k0s.start - part_[0].keys.start) * value_plane_ +
                                                          (k1s.start - part_[1].keys.start) * value_row_
                                                    : row_index(k0s.start, k1s.start) * value_row_;
    const float* values = values_ + first_row + (tile.slot0 - first_place_) * value_step_;
    int query = 0;
    for (const QueryWindows& windows : tile.windows) {
      call.probabilities = scores + query;
      call.factor = factors_ + query;
      for (std::int64_t c = 0; c < value_pitch_;) {
        const std::int64_t left = (value_pitch_ - c) / kLanes;
        call.values = values + c;
        call.sums = buffer_ + query * value_pitch_ + c;
        if (left >= kMostVectors) {
          add_values<kMostVectors>(call, windows);
          c += kMostVectors * kLanes;
        } else if (left >= 2) {
          add_values<2>(call, windows);
          c += 2 * kLanes;
        } else {
          add_values<1>(call, windows);
          c += kLanes;
        }
      }
      query += kQueries;
    }
    const Place output = place_of(q0, q1, tile.query);
    store_rows(
        buffer_, value_pitch_, tile.count, value_dim_,
        {row_of(pass_.out, task_.plan->batch, output, head), pass_.out.strides[3] * query_step(), pass_.out.type});
    float* lse = pass_.lse + output_grid(p_).index(task_.plan->batch, output) * p_.heads + head;
    for (int lane = 0; lane < tile.count; ++lane) lse[lane * query_step() * p_.heads] = lse_[lane];
  }

  void add_bias(std::int64_t head, std::int64_t q0, std::int64_t q1, const Tile& tile, float* scores) const {
    const TileTag d;
    const hn::Rebind<std::int32_t, TileTag> di;
    const auto &outer = group_[0]->queries[q0], &inner = group_[1]->queries[q1];
    const std::int64_t slots = axes_[2].kernel_size;
    const std::int64_t bias1 = 2 * axes_[1].kernel_size - 1, bias2 = 2 * axes_[2].kernel_size - 1;
    const auto log2e = hn::Set(d, kLog2E);
    for (std::int64_t k0 = outer.keys.start; k0 < outer.keys.end; ++k0) {
      for (std::int64_t k1 = inner.keys.start; k1 < inner.keys.end; ++k1) {
        const std::int64_t entry0 = rpb_index(axes_[0], outer.place, k0), entry1 = rpb_index(axes_[1], inner.place, k1);
        const std::int64_t rows = head * (2 * axes_[0].kernel_size - 1) + entry0;
        const float* bias = pass_.inputs.rpb + (rows * bias1 + entry1) * bias2;
        float* s = scores + (k0 - outer.keys.start) * score_plane_ + (k1 - inner.keys.start) * slots * kLanes;
        for (std::int64_t slot = tile.first_slot; slot < slots; ++slot) {
          const auto entry = tile.one_bias ? hn::Set(d, bias[tile.bias[0] + slot])
                                           : hn::GatherIndex(d, bias + slot, hn::LoadU(di, tile.bias));
          hn::Store(hn::MulAdd(entry, log2e, hn::Load(d, s + slot * kLanes)), d, s + slot * kLanes);
        }
      }
    }
  }

  void mask(const Tile& tile, const Span& k0s, const Span& k1s, float* scores) const {
    const TileTag d;
    const hn::Rebind<std::int32_t, TileTag> di;
    const auto empty = hn::LoadU(di, tile.empty_slots);
    const auto lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
    const std::int64_t slots = axes_[2].kernel_size;
    for (std::int64_t plane = 0; plane < size_of(k0s); ++plane) {
      for (std::int64_t row = 0; row < size_of(k1s); ++row) {
        float* s = scores + plane * score_plane_ + row * slots * kLanes;
        for (std::int64_t slot = 0; slot < slots; ++slot, s += kLanes) {
          const auto is_empty = hn::RebindMask(d, hn::Gt(empty, hn::Set(di, static_cast<std::int32_t>(slot))));
          hn::Store(hn::IfThenElse(is_empty, lowest, hn::Load(d, s)), d, s);
        }
      }
    }
  }

  const Pass& pass_;
  const Problem& p_;
  const Task& task_;
  const std::array<Axis, kAxes>& axes_;
  const AxisGroup* group_[kAxes];
  const std::int64_t heads_;  ///< query heads of the key head
  const std::int64_t dim_, value_dim_, pitch_, value_pitch_;

  AxisPart part_[kAxes];
  std::vector<ForwardTile> tiles_;
  std::int64_t first_place_, places_;                  ///< of the packed rows of keys
  std::int64_t key_pitch_, key_row_;                   ///< floats from channel to channel, and of a packed row of keys
  bool values_in_place_;                               ///< read where they are, not packed
  std::int64_t value_step_, value_row_, value_plane_;  ///< floats from place to place, row to row, plane to plane
  int slide_axis_;                         ///< the outermost axis with several keys: what is packed slides along it
  std::int64_t slab_rows_;                 ///< rows of keys of one of its places
  std::int64_t capacity_;                  ///< slabs that fit the packed memory
  Span packed_;                            ///< slabs that are packed
  std::int64_t block_rows_;                ///< rows of queries at a time
  std::int64_t score_plane_, score_size_;  ///< floats of scores: of one key plane, of one row of queries

  const float* values_;  ///< of first_place_ of the first row
  float *keys_, *value_memory_, *queries_, *scores_, *buffer_, *factors_, *lse_;
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
