// The three sweeps of the split form. Included once per SIMD target.
#if defined(NATTEN_NATIVE_CPU_SPLIT_SWEEP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_SPLIT_SWEEP_INL_H_
#undef NATTEN_NATIVE_CPU_SPLIT_SWEEP_INL_H_
#else
#define NATTEN_NATIVE_CPU_SPLIT_SWEEP_INL_H_
#endif

#include <algorithm>

#include "hwy/highway.h"
#include "native/cpu/split.h"
#include "native/cpu/tile_sweep-inl.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
/// What the three sweeps of the split form share: a packed tile holds one vector of channels per query, and its slots,
/// [slot][lane]. In memory the slots of a query are one row, and those of neighbouring queries far apart: every row is
/// read or written once, not a few slots for every row of keys, unless the slots are too many for that.
class SplitSweep : public TileSweep {
 protected:
  SplitSweep(const AttentionInputs& inputs, const split::Call& call, const Task& task, Wanted wanted)
      : TileSweep(inputs.problem, task, wanted),
        call_(call),
        pitch_(round_up(call.dim, kLanes)),
        volume_(inputs.problem.kernel_volume()),
        packs_slots_(volume_ <= tuning::kMostPackedSlots),
        slots_(std::max(round_up(call.dim, 4), pitch_) * kLanes) {
    widest_ = packs_slots_ ? std::max(call.dim, volume_) : call.dim;
    tile_size_ = slots_ + (packs_slots_ ? round_up(volume_, 4) * kLanes : 0);
  }

  TensorRows channel_rows(std::int64_t q0, std::int64_t q1, std::int64_t q2, std::int64_t head) const {
    return call_.over_tokens ? region_.query_rows(call_.queries, query_head(head), q0, q1, q2)
                             : region_.out_rows(call_.queries, query_head(head), q0, q1, q2);
  }
  /// From slot `first` on.
  TensorRows slot_rows(std::int64_t q0, std::int64_t q1, std::int64_t q2, std::int64_t head, std::int64_t first) const {
    TensorRows rows = region_.out_rows(call_.slots, query_head(head), q0, q1, q2);
    rows.data += first * element_size(rows.type);
    return rows;
  }

  void load_slots(std::int64_t q0, std::int64_t q1, std::int64_t head, const Tile& tile, std::int64_t first,
                  std::int64_t count, float* to) const {
    const std::int64_t pitch = round_up(count, kLanes);
    load_tile(slot_rows(q0, q1, tile.query, head, first), tile, count, buffer_, pitch);
    transpose_in(buffer_, pitch, round_up(count, 4), 1.0f, to, kLanes);
  }
  void store_slots(std::int64_t q0, std::int64_t q1, std::int64_t head, const Tile& tile, std::int64_t first,
                   std::int64_t count, const float* from) const {
    store_transposed(from, count, 1.0f, tile,
                     [&](std::int64_t query) { return slot_rows(q0, q1, query, head, first); });
  }
  void load_packed_slots(std::int64_t q0, std::int64_t q1, std::int64_t head, const Tile& tile, float* to) const {
    if (packs_slots_) load_slots(q0, q1, head, tile, 0, volume_, to + slots_);
  }

  /// scores[row][slot][lane], zeros in empty slots whatever stands in memory.
  void gather_scores(const Tile& tile, std::int64_t tile_start, const QueryRow* rows, int count, int slot, int slots,
                     float* scores) const {
    const TileTag d;
    for (int r = 0; r < count; ++r, scores += score_size_) {
      const QueryRow& row = rows[r];
      if (!packs_slots_) load_slots(row.q0, row.q1, row.head, tile, row.slot + slot, slots, scores);
      const float* from = packs_slots_ ? row.tiles + tile_start + slots_ + (row.slot + slot) * kLanes : scores;
      for (int s = 0; s < slots; ++s) {
        auto score = hn::Load(d, from + s * kLanes);
        if (tile.is_masked) score = hn::IfThenZeroElse(empty_lanes(tile, slot + s), score);
        hn::Store(score, d, scores + s * kLanes);
      }
    }
  }

  void point_to(float** pointers, const QueryRow* rows, int count, std::int64_t tile_start) const {
    for (int r = 0; r < count; ++r) pointers[r] = rows[r].tiles + tile_start;
  }

  const split::Call& call_;
  const std::int64_t pitch_, volume_;
  const bool packs_slots_;
  const std::int64_t slots_;  ///< place of the slots in a packed tile
};

/// slots = factor * x . row of the key in the slot, plus the position bias.
class ProductsSweep final : public SplitSweep {
 public:
  ProductsSweep(const AttentionInputs& inputs, const split::Call& call, const Task& task)
      : SplitSweep(inputs, call, task, {true, false}) {
    keys_[0] = {&call.keys, call.dim};
    checks_finite_ = false;  // products meet no weights
  }

 private:
  void pack_tile(std::int64_t q0, std::int64_t q1, std::int64_t head, const Tile& tile, float* to) override {
    load_tile(channel_rows(q0, q1, tile.query, head), tile, call_.dim, buffer_, pitch_);
    transpose_in(buffer_, pitch_, round_up(call_.dim, 4), call_.factor, to, kLanes);
    if (packs_slots_) {
      std::fill_n(to + slots_, round_up(volume_, 4) * kLanes, call_.empty);
    } else if (axes_[0].is_causal || axes_[1].is_causal || axes_[2].is_causal) {
      std::fill_n(scores_[0], score_size_, call_.empty);
      for (std::int64_t slot = 0; slot < volume_; slot += slot_rows_) {
        store_slots(q0, q1, head, tile, slot, std::min<std::int64_t>(slot_rows_, volume_ - slot), scores_[0]);
      }
    }
  }

  void store_tile(std::int64_t q0, std::int64_t q1, std::int64_t head, const Tile& tile, float* from) override {
    if (packs_slots_) store_slots(q0, q1, head, tile, 0, volume_, from + slots_);
  }

  void multiply(const Tile& tile, std::int64_t tile_start, const QueryRow* rows, int count, int, int slot, int slots,
                std::int64_t block_row, bool) override {
    const TileTag d;
    point_to(pointers_[0], rows, count, tile_start);
    multiply_slots(tile, packed_keys(0, tile, block_row) + slot, call_.dim, pointers_[0], count, slots, scores_[0]);
    const auto empty_value = hn::Set(d, call_.empty);
    for (int r = 0; r < count; ++r) {
      const QueryRow& row = rows[r];
      float* scores = scores_[0] + r * score_size_;
      const float* bias = bias_of(call_.rpb, row);
      float* to = packs_slots_ ? row.tiles + tile_start + slots_ + (row.slot + slot) * kLanes : scores;
      for (int s = 0; s < slots; ++s) {
        auto score = hn::Load(d, scores + s * kLanes);
        if (bias != nullptr) score = hn::Add(score, bias_lanes(tile, bias + slot + s));
        if (tile.is_masked) score = hn::IfThenElse(empty_lanes(tile, slot + s), empty_value, score);
        hn::Store(score, d, to + s * kLanes);
      }
      if (!packs_slots_) store_slots(row.q0, row.q1, row.head, tile, row.slot + slot, slots, scores);
    }
  }
};

/// sum = factor * sum over slots of score * row of the key; the bias' gradient sums the scores.
class SumsSweep final : public SplitSweep {
 public:
  SumsSweep(const AttentionInputs& inputs, const split::Call& call, const Task& task)
      : SplitSweep(inputs, call, task, {true, false}) {
    keys_[0] = {&call.keys, call.dim};
  }

 private:
  void pack_tile(std::int64_t q0, std::int64_t q1, std::int64_t head, const Tile& tile, float* to) override {
    std::fill_n(to, slots_, 0.0f);
    load_packed_slots(q0, q1, head, tile, to);
  }
  void store_tile(std::int64_t q0, std::int64_t q1, std::int64_t head, const Tile& tile, float* from) override {
    store_transposed(from, call_.dim, call_.factor, tile,
                     [&](std::int64_t query) { return channel_rows(q0, q1, query, head); });
  }

  void multiply(const Tile& tile, std::int64_t tile_start, const QueryRow* rows, int count, int, int slot, int slots,
                std::int64_t block_row, bool) override {
    gather_scores(tile, tile_start, rows, count, slot, slots, scores_[0]);
    for (int r = 0; r < count; ++r) add_bias_gradient(tile, rows[r], slot, slots, scores_[0] + r * score_size_);
    point_to(pointers_[0], rows, count, tile_start);
    add_keys(tile, packed_keys(0, tile, block_row) + slot, call_.dim, pointers_[0], count, slot, slots, scores_[0]);
  }
};

/// The transpose of the above: at a key, factor * sum over the queries that attend it of score * query.
class KeySumsSweep final : public SplitSweep {
 public:
  KeySumsSweep(const AttentionInputs& inputs, const split::Call& call, const Task& task)
      : SplitSweep(inputs, call, task, {false, true}) {
    dkeys_[0] = {&call.keys, call.dim};
  }

 private:
  void pack_tile(std::int64_t q0, std::int64_t q1, std::int64_t head, const Tile& tile, float* to) override {
    load_tile(channel_rows(q0, q1, tile.query, head), tile, call_.dim, to, pitch_);
    scale_row(to, pitch_ * kLanes, call_.factor);
    check_finite(to, pitch_ * kLanes);
    load_packed_slots(q0, q1, head, tile, to);
  }
  void store_tile(std::int64_t, std::int64_t, std::int64_t, const Tile&, float*) override {}

  void multiply(const Tile& tile, std::int64_t tile_start, const QueryRow* rows, int count, int, int slot, int slots,
                std::int64_t block_row, bool owned_key) override {
    if (!owned_key) return;
    gather_scores(tile, tile_start, rows, count, slot, slots, scores_[0]);
    point_to(pointers_[0], rows, count, tile_start);
    add_queries(tile, scores_[0], pointers_[0], count, slot, slots, summed_keys(0, tile, block_row) + slot * pitch_,
                pitch_);
  }
};

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_SPLIT_SWEEP_INL_H_
