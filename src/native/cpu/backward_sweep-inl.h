// The backward pass of the fused operation, by tiles of queries. Included once per SIMD target.
#if defined(NATTEN_NATIVE_CPU_BACKWARD_SWEEP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_BACKWARD_SWEEP_INL_H_
#undef NATTEN_NATIVE_CPU_BACKWARD_SWEEP_INL_H_
#else
#define NATTEN_NATIVE_CPU_BACKWARD_SWEEP_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstdint>

#include "hwy/highway.h"
#include "native/cpu/backward.h"
#include "native/cpu/tile_extra-inl.h"
#include "native/cpu/tile_softmax-inl.h"
#include "native/cpu/tile_sweep-inl.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Recomputes the probabilities P of a tile from lse, and with dP = dout . v and delta = rowsum(out * dout) - dlse:
/// dS = P (dP - delta), dq = scale dS K, dk = scale dS^T Q, dv = P^T dout.
class BackwardSweep : public TileSweep {
 public:
  BackwardSweep(const backward::Pass& pass, const Task& task)
      : TileSweep(pass.inputs.problem, task, pass.wanted()),
        pass_(pass),
        scale_(static_cast<float>(problem_.scale)),
        dim_(problem_.head_dim),
        value_dim_(problem_.value_dim),
        pitch_(round_up(dim_, kLanes)),
        value_pitch_(round_up(value_dim_, kLanes)) {
    const Gradients& gradients = pass.gradients;
    keys_[0] = {&pass.inputs.key, dim_};
    keys_[1] = {&pass.inputs.value, value_dim_};
    if (gradients.key.has_value()) {
      dkeys_[0] = {&*gradients.key, dim_};
      dkeys_[1] = {&*gradients.value, value_dim_};
    }
    const Problem& p = problem_;
    is_streamed_ = p.batch * p.key_tokens() * p.heads * dim_ * 4 >= tuning::kStreamBytes;
    widest_ = std::max(dim_, value_dim_);
    const auto place = [this](std::int64_t floats) {
      const std::int64_t at = tile_size_;
      tile_size_ += round_up(floats, kLanes);
      return at;
    };
    query_t_ = place(round_up(dim_, 4) * kLanes);
    dout_t_ = place(round_up(value_dim_, 4) * kLanes);
    dquery_t_ = place(round_up(dim_, 4) * kLanes);
    query_ = place(pitch_ * kLanes);
    dout_ = place(value_pitch_ * kLanes);
    lse_ = place(kLanes);
    delta_ = place(kLanes);
    if (gradients.query.has_value() && gradients.query->type != FloatType::float32) {
      waiting_size_ = round_up((kLanes * dim_ + 1) / 2, kLanes);  // lower halves
    }
    if (pass.extra.count() > 0) own_size_ = ExtraGradients::size();
  }

 protected:
  void pack_tile(std::int64_t q0, std::int64_t q1, std::int64_t task_head, const Tile& tile, float* to) override {
    const TileTag d;
    float *query = to + query_, *dout = to + dout_;
    const std::int64_t head = query_head(task_head);
    load_tile(region_.query_rows(pass_.inputs.query, head, q0, q1, tile.query), tile, dim_, query, pitch_);
    load_tile(region_.out_rows(pass_.saved.dout, head, q0, q1, tile.query), tile, value_dim_, dout, value_pitch_);
    load_tile(region_.out_rows(pass_.saved.out, head, q0, q1, tile.query), tile, value_dim_, buffer_, value_pitch_);
    // The scale belongs to the logits, which are base-2 logarithms here, and to dk.
    transpose_in(query, pitch_, round_up(dim_, 4), scale_ * kLog2E, to + query_t_, kLanes);
    scale_row(query, kLanes * pitch_, scale_);
    transpose_in(dout, value_pitch_, round_up(value_dim_, 4), 1.0f, to + dout_t_, kLanes);
    std::fill_n(to + dquery_t_, kLanes * round_up(dim_, 4), 0.0f);
    std::fill_n(to + lse_, kLanes, 0.0f);
    std::fill_n(to + delta_, kLanes, 0.0f);

    region_.for_each_entry(problem_, head, q0, q1, tile.query, tile.count, [&](int lane, std::int64_t entry) {
      auto sum = hn::Zero(d);
      for (std::int64_t c = lane * value_pitch_; c < (lane + 1) * value_pitch_; c += kLanes) {
        sum = hn::MulAdd(hn::Load(d, buffer_ + c), hn::Load(d, dout + c), sum);
      }
      to[lse_ + lane] = pass_.saved.lse[entry] * kLog2E;
      to[delta_ + lane] =
          hn::GetLane(hn::SumOfLanes(d, sum)) - (pass_.saved.dlse == nullptr ? 0.0f : pass_.saved.dlse[entry]);
    });
    if (has_empty(to)) {
      met_empty_ = true;
      clear_empty_rows(to + lse_, tile.count, query, pitch_);
      clear_empty_rows(to + lse_, tile.count, dout, value_pitch_);
    }
    check_finite(query, kLanes * pitch_);
    check_finite(dout, kLanes * value_pitch_);
    const Span owned = owned_of(tile);
    if (pass_.extra.count() == 0 || !is_first_pack_ || !is_owned_query(q0, q1) || size_of(owned) <= 0) return;
    const auto lanes = hn::Iota(d, 0.0f);
    const auto counted = hn::And(hn::Ge(lanes, hn::Set(d, static_cast<float>(owned.start - tile.query))),
                                 hn::Lt(lanes, hn::Set(d, static_cast<float>(owned.end - tile.query))));
    ExtraGradients{pass_.extra, region_.task.plan->batch, region_.task.kv_heads.start, dim_, value_dim_,
                   own_memory_, region_.task.dextra}
        .add(to + query_t_, to + dout_t_, query, dout, to + lse_, to + delta_, counted, to + dquery_t_);
  }

  /// Whether the tile has a query all of whose logits are -inf: its weights and gradients are zero.
  bool has_empty(const float* packed) const {
    const TileTag d;
    return !hn::AllFalse(d, are_lowest(hn::Load(d, packed + lse_)));
  }

  void store_tile(std::int64_t q0, std::int64_t q1, std::int64_t head, const Tile& tile, float* from) override {
    if (met_empty_ && has_empty(from)) {
      const TileTag d;
      const auto is_empty = are_lowest(hn::Load(d, from + lse_));
      for (std::int64_t c = dquery_t_; c < dquery_t_ + kLanes * dim_; c += kLanes) {
        hn::Store(hn::IfThenZeroElse(is_empty, hn::Load(d, from + c)), d, from + c);
      }
    }
    store_transposed(from + dquery_t_, dim_, scale_, tile, [&](std::int64_t query) {
      return region_.query_rows(*pass_.gradients.query, query_head(head), q0, q1, query);
    });
  }

  bool can_pack_anew() const override { return !is_dense_; }

  /// Blocks of many rows of keys, past which a few rows of queries go at a time.
  void multiply_block(std::int64_t k0, const Span& k1s) override {
    if (!packs_anew()) return TileSweep::multiply_block(k0, k1s);
    const Span q0s = attending(0, {k0, k0 + 1}), q1s = attending(1, k1s);
    for (std::size_t t = 0; t < tiles_.size(); ++t) {
      for (std::int64_t q0 = q0s.start; q0 < q0s.end; ++q0) {
        for (std::int64_t q1 = q1s.start; q1 < q1s.end; q1 += ring_[1]) {
          multiply_box(t, q0, {q1, std::min(q1 + ring_[1], q1s.end)}, k0, k1s);
        }
      }
    }
  }

  /// A tile of some rows of queries of a plane with a block of keys.
  HWY_NOINLINE void multiply_box(std::size_t t, std::int64_t q0, const Span& q1s, std::int64_t k0, const Span& k1s) {
    const Tile& tile = tiles_[t];
    const bool with_all = any_owned_key(k0, k1s);
    const auto for_each_head = [&](bool owned, auto&& visit) {
      for (std::int64_t q1 = q1s.start; q1 < q1s.end; ++q1) {
        if (owned && !is_owned_query(q0, q1)) continue;
        for (std::int64_t head = 0; head < heads_; ++head) visit(q1, head, ring_row(q0, q1, head));
      }
    };
    for_each_head(!with_all, [&](std::int64_t q1, std::int64_t head, float* row) {
      is_first_pack_ = group_[0]->queries[q0].keys.start == k0 && contains(k1s, group_[1]->queries[q1].keys.start);
      pack_tile(q0, q1, head, tile, row);
      if (is_first_pack_ || !pass_.gradients.query || !is_owned_query(q0, q1)) return;
      resume(q0, q1, head, tile, row, waiting(q0, q1, head, t));
    });
    for (std::int64_t k1 = k1s.start; k1 < k1s.end; ++k1) {
      const Span attend = attending(1, {k1, k1 + 1});
      std::vector<QueryRow>& rows = rows_[k1 - k1s.start];
      list_rows(k0, k1, {q0, q0 + 1}, {std::max(q1s.start, attend.start), std::min(q1s.end, attend.end)}, rows);
      if (!rows.empty()) multiply_row(tile, 0, k1 - k1s.start, is_owned_key(k0, k1));
    }
    if (!pass_.gradients.query) return;
    for_each_head(true, [&](std::int64_t q1, std::int64_t head, float* row) {
      is_done(q0, q1, k0, k1s) ? store_tile(q0, q1, head, tile, row)
                               : suspend(q0, q1, head, tile, row, waiting(q0, q1, head, t));
    });
  }

  /// Keeps the sums of a tile's dq until it is packed again: in dq's own rows, of half types the upper 16 bits there
  /// and the lower ones in `waiting`, or all of them in `waiting`.
  HWY_NOINLINE void suspend(std::int64_t q0, std::int64_t q1, std::int64_t head, const Tile& tile, const float* from,
                            float* waiting) {
    if (!waits_in_rows_) return void(std::copy_n(from + dquery_t_, dquery_size(), waiting));
    const TensorRows rows = owned_rows(q0, q1, head, tile);
    const Span lanes = owned_lanes(tile);
    if (size_of(lanes) <= 0) return;
    transpose_out(from + dquery_t_, round_up(dim_, 4), 1.0f, buffer_, pitch_);
    if (rows.type == FloatType::float32) {
      return store_rows(buffer_ + lanes.start * pitch_, pitch_, size_of(lanes), dim_, rows);
    }
    for_each_half_row(rows, lanes, waiting, [&](float* row, std::uint16_t* upper, std::uint16_t* lower) {
      for (std::int64_t c = 0; c < dim_; ++c) {
        const auto bits = std::bit_cast<std::uint32_t>(row[c]);
        upper[c] = static_cast<std::uint16_t>(bits >> 16);
        lower[c] = static_cast<std::uint16_t>(bits);
      }
    });
  }

  HWY_NOINLINE void resume(std::int64_t q0, std::int64_t q1, std::int64_t head, const Tile& tile, float* to,
                           float* waiting) {
    if (!waits_in_rows_) return void(std::copy_n(waiting, dquery_size(), to + dquery_t_));
    const TensorRows rows = owned_rows(q0, q1, head, tile);
    const Span lanes = owned_lanes(tile);
    if (size_of(lanes) <= 0) return;
    std::fill_n(buffer_, kLanes * pitch_, 0.0f);
    if (rows.type == FloatType::float32) {
      load_rows(rows, size_of(lanes), dim_, buffer_ + lanes.start * pitch_, pitch_);
    } else {
      for_each_half_row(rows, lanes, waiting, [&](float* row, const std::uint16_t* upper, const std::uint16_t* lower) {
        for (std::int64_t c = 0; c < dim_; ++c) {
          row[c] = std::bit_cast<float>(static_cast<std::uint32_t>(upper[c]) << 16 | lower[c]);
        }
      });
    }
    transpose_in(buffer_, pitch_, round_up(dim_, 4), 1.0f, to + dquery_t_, kLanes);
  }

  /// Calls visit(row of buffer_, of dq, of `waiting`) for some lanes.
  template <class Visit>
  void for_each_half_row(const TensorRows& rows, const Span& lanes, float* waiting, Visit&& visit) const {
    auto* lower = reinterpret_cast<std::uint16_t*>(waiting);
    rows.for_each_run(size_of(lanes), reinterpret_cast<std::uint16_t*>(rows.data),
                      [&](std::int64_t first, std::int64_t count, std::uint16_t* upper) {
                        for (std::int64_t i = first; i < first + count; ++i, upper += rows.stride) {
                          visit(buffer_ + (lanes.start + i) * pitch_, upper, lower + i * dim_);
                        }
                      });
  }

  std::int64_t dquery_size() const { return kLanes * round_up(dim_, 4); }
  Span owned_lanes(const Tile& tile) const {
    const Span owned = owned_of(tile);
    return {owned.start - tile.query, owned.end - tile.query};
  }
  TensorRows owned_rows(std::int64_t q0, std::int64_t q1, std::int64_t head, const Tile& tile) const {
    return region_.query_rows(*pass_.gradients.query, query_head(head), q0, q1, owned_of(tile).start);
  }

  void multiply(const Tile& tile, std::int64_t tile_start, const QueryRow* rows, int count, int owned, int slot,
                int slots, std::int64_t block_row, bool owned_key) override {
    const auto point_to = [&](float** pointers, std::int64_t offset) {
      for (int r = 0; r < count; ++r) pointers[r] = rows[r].tiles + tile_start + offset;
    };
    const float* keys = packed_keys(0, tile, block_row) + slot;
    float *probabilities = scores_[0], *dlogits = scores_[1];
    point_to(pointers_[0], query_t_);
    point_to(pointers_[1], dout_t_);
    multiply_slots(tile, keys, dim_, pointers_[0], count, slots, probabilities);
    multiply_slots(tile, packed_keys(1, tile, block_row) + slot, value_dim_, pointers_[1], count, slots, dlogits);
    for (int r = 0; r < count; ++r) {
      const bool is_masked = tile.is_masked || (met_empty_ && has_empty(rows[r].tiles + tile_start));
      const auto finish =
          pass_.inputs.rpb == nullptr
              ? (is_masked ? &BackwardSweep::finish_scores<false, true> : &BackwardSweep::finish_scores<false, false>)
              : (is_masked ? &BackwardSweep::finish_scores<true, true> : &BackwardSweep::finish_scores<true, false>);
      (this->*finish)(tile, rows[r], tile_start, slot, slots, probabilities + r * score_size_,
                      dlogits + r * score_size_);
      add_bias_gradient(tile, rows[r], slot, slots, dlogits + r * score_size_);
    }
    if (owned > 0) {
      point_to(pointers_[2], dquery_t_);
      add_keys(tile, keys, dim_, pointers_[2], owned, slot, slots, dlogits);
    }
    if (owned_key) {
      point_to(pointers_[0], dout_);
      point_to(pointers_[1], query_);
      add_queries(tile, probabilities, pointers_[0], count, slot, slots,
                  summed_keys(1, tile, block_row) + slot * value_pitch_, value_pitch_);
      add_queries(tile, dlogits, pointers_[1], count, slot, slots, summed_keys(0, tile, block_row) + slot * pitch_,
                  pitch_);
    }
  }

  /// From logits and dP to P and dS.
  template <bool kBias, bool kMasked>
  void finish_scores(const Tile& tile, const QueryRow& row, std::int64_t tile_start, int slot, int slots, float* logits,
                     float* dlogits) const {
    const TileTag d;
    const auto lse = hn::Load(d, row.tiles + tile_start + lse_);
    const auto delta = hn::Load(d, row.tiles + tile_start + delta_);
    const auto log2e = hn::Set(d, kLog2E);
    const auto is_empty = are_lowest(lse);
    const float* bias = bias_of(pass_.inputs.rpb, row);
    for (int s = 0; s < slots; ++s, logits += kLanes, dlogits += kLanes) {
      auto logit = hn::Sub(hn::Load(d, logits), lse);
      if constexpr (kBias) logit = hn::MulAdd(log2e, bias_lanes(tile, bias + slot + s), logit);
      auto probability = exp2_float(logit);
      auto dlogit = hn::Mul(probability, hn::Sub(hn::Load(d, dlogits), delta));
      if constexpr (kMasked) {
        const auto empty = hn::Or(is_empty, empty_lanes(tile, slot + s));
        probability = hn::IfThenZeroElse(empty, probability);
        dlogit = hn::IfThenZeroElse(empty, dlogit);
      }
      hn::Store(probability, d, logits);
      hn::Store(dlogit, d, dlogits);
    }
  }

  const backward::Pass& pass_;
  const float scale_;
  const std::int64_t dim_, value_dim_, pitch_, value_pitch_;
  // Places in a packed tile: transposed [channel][lane]; [lane][pitch]; [lane].
  std::int64_t query_t_, dout_t_, dquery_t_, query_, dout_, lse_, delta_;
  bool waits_in_rows_ = true;  ///< see suspend()
  bool met_empty_ = false;     ///< some tile has_empty()
  bool is_first_pack_ = true;  ///< of the tiles that are packed
};

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_BACKWARD_SWEEP_INL_H_
