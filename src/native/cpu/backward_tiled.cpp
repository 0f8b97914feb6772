#include "native/cpu/backward.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "native/cpu/backward_tiled.cpp"
#include "hwy/foreach_target.h"
// Highway asks that these come after foreach_target.h.
#include "hwy/highway.h"
#include "native/cpu/dispatch.h"
#include "native/cpu/simd_exp-inl.h"
#include "native/cpu/tile_sweep-inl.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace {

/// Recomputes the probabilities P of a tile from lse, and with dP = dout . v and delta = rowsum(out * dout) - dlse:
/// dS = P (dP - delta), dq = scale dS K, dk = scale dS^T Q, dv = P^T dout.
class BackwardSweep final : public TileSweep {
 public:
  BackwardSweep(const AttentionInputs& inputs, const SavedForward& saved, const backward::Gradients& gradients,
                const Task& task)
      : TileSweep(inputs.problem, task, gradients.wanted()),
        inputs_(inputs),
        saved_(saved),
        gradients_(gradients),
        scale_(static_cast<float>(inputs.problem.scale)),
        outputs_(output_grid(inputs.problem)),
        dim_(inputs.problem.head_dim),
        value_dim_(inputs.problem.value_dim),
        pitch_(round_to(dim_, kLanes)),
        value_pitch_(round_to(value_dim_, kLanes)) {
    keys_[0] = {&inputs.key, dim_};
    keys_[1] = {&inputs.value, value_dim_};
    if (gradients.key != nullptr) {
      dkeys_[0] = {gradients.key, dim_};
      dkeys_[1] = {gradients.value, value_dim_};
    }
    widest_ = std::max(dim_, value_dim_);
    const auto place = [this](std::int64_t floats) {
      const std::int64_t at = tile_size_;
      tile_size_ += round_to(floats, kLanes);
      return at;
    };
    query_t_ = place(round_to(dim_, 4) * kLanes);
    dout_t_ = place(round_to(value_dim_, 4) * kLanes);
    dquery_t_ = place(round_to(dim_, 4) * kLanes);
    query_ = place(pitch_ * kLanes);
    dout_ = place(value_pitch_ * kLanes);
    lse_ = place(kLanes);
    delta_ = place(kLanes);
  }

 private:
  void pack_tile(std::int64_t q0, std::int64_t q1, std::int64_t head, const Tile& tile, float* to) override {
    const TileTag d;
    float *query = to + query_, *dout = to + dout_;
    load_tile(query_rows(inputs_.query, true, q0, q1, tile.query, head), tile, dim_, query, pitch_);
    load_tile(query_rows(saved_.dout, false, q0, q1, tile.query, head), tile, value_dim_, dout, value_pitch_);
    load_tile(query_rows(saved_.out, false, q0, q1, tile.query, head), tile, value_dim_, buffer_, value_pitch_);
    // The scale belongs to the logits and to dk.
    const auto scale = hn::Set(d, scale_);
    for (std::int64_t c = 0; c < kLanes * pitch_; c += kLanes) {
      hn::Store(hn::Mul(scale, hn::Load(d, query + c)), d, query + c);
    }
    transpose_in(query, pitch_, round_to(dim_, 4), 1.0f, to + query_t_, kLanes);
    transpose_in(dout, value_pitch_, round_to(value_dim_, 4), 1.0f, to + dout_t_, kLanes);
    std::fill_n(to + dquery_t_, kLanes * round_to(dim_, 4), 0.0f);
    std::fill_n(to + lse_, kLanes, 0.0f);
    std::fill_n(to + delta_, kLanes, 0.0f);

    const auto& queries = group_[2]->queries;
    const std::int64_t row =
        outputs_.index(task_.plan->batch, {group_[0]->queries[q0].output, group_[1]->queries[q1].output, 0});
    for (int lane = 0; lane < tile.count; ++lane) {
      auto sum = hn::Zero(d);
      for (std::int64_t c = lane * value_pitch_; c < (lane + 1) * value_pitch_; c += kLanes) {
        sum = hn::MulAdd(hn::Load(d, buffer_ + c), hn::Load(d, dout + c), sum);
      }
      const std::int64_t flat =
          (row + queries[tile.query + lane].output) * problem_.heads + task_.kv_head * heads_ + head;
      to[lse_ + lane] = saved_.lse[flat];
      to[delta_ + lane] = hn::GetLane(hn::SumOfLanes(d, sum)) - (saved_.dlse == nullptr ? 0.0f : saved_.dlse[flat]);
    }
  }

  void store_tile(std::int64_t q0, std::int64_t q1, std::int64_t head, const Tile& tile, const float* from) override {
    store_transposed(from + dquery_t_, dim_, scale_, tile, *gradients_.query, true, q0, q1, head);
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
    call_tiles(kMultiply, tile, keys, dim_, pointers_[0], count, slots, probabilities);
    call_tiles(kMultiply, tile, packed_keys(1, tile, block_row) + slot, value_dim_, pointers_[1], count, slots,
               dlogits);
    for (int r = 0; r < count; ++r) {
      finish_scores(tile, rows[r], tile_start, slot, slots, probabilities + r * score_size_, dlogits + r * score_size_);
      add_bias_gradient(tile, rows[r], slot, slots, dlogits + r * score_size_);
    }
    if (owned > 0) {
      point_to(pointers_[2], dquery_t_);
      call_tiles(kAddKeys, tile, keys, dim_, pointers_[2], owned, slots, dlogits);
    }
    if (owned_key) {
      point_to(pointers_[0], dout_);
      point_to(pointers_[1], query_);
      call_keys(tile, probabilities, pointers_[0], count, slots, summed_keys(1, tile, block_row) + slot * value_pitch_,
                value_pitch_);
      call_keys(tile, dlogits, pointers_[1], count, slots, summed_keys(0, tile, block_row) + slot * pitch_, pitch_);
    }
  }

  /// From logits and dP to P and dS.
  HWY_INLINE void finish_scores(const Tile& tile, const QueryRow& row, std::int64_t tile_start, int slot, int slots,
                                float* logits, float* dlogits) const {
    const TileTag d;
    const auto lse = hn::Load(d, row.tiles + tile_start + lse_);
    const auto delta = hn::Load(d, row.tiles + tile_start + delta_);
    const float* bias = bias_of(inputs_.rpb, row);
    for (int s = 0; s < slots; ++s) {
      auto logit = hn::Load(d, logits + s * kLanes);
      if (bias != nullptr) logit = hn::Add(logit, bias_lanes(tile, bias + slot + s));
      auto probability = exp_float(d, hn::Sub(logit, lse));
      auto dlogit = hn::Mul(probability, hn::Sub(hn::Load(d, dlogits + s * kLanes), delta));
      if (tile.is_masked) {
        const auto empty = empty_lanes(tile, slot + s);
        probability = hn::IfThenZeroElse(empty, probability);
        dlogit = hn::IfThenZeroElse(empty, dlogit);
      }
      hn::Store(probability, d, logits + s * kLanes);
      hn::Store(dlogit, d, dlogits + s * kLanes);
    }
  }

  const AttentionInputs& inputs_;
  const SavedForward& saved_;
  const backward::Gradients& gradients_;
  const float scale_;
  const Grid outputs_;
  const std::int64_t dim_, value_dim_, pitch_, value_pitch_;
  // Places in a packed tile: transposed [channel][lane]; [lane][pitch]; [lane].
  std::int64_t query_t_, dout_t_, dquery_t_, query_, dout_, lse_, delta_;
};

void run_backward(const AttentionInputs& inputs, const SavedForward& saved, const backward::Gradients& gradients,
                  const Task& task) {
  BackwardSweep(inputs, saved, gradients, task).run();
}

}  // namespace
}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace natten::cpu {

HWY_EXPORT(run_backward);

void backward::tiled(const AttentionInputs& inputs, const SavedForward& saved, const Gradients& gradients) {
  const Problem& p = inputs.problem;
  const Wanted wanted = gradients.wanted();
  const bool is_strided = p.axes[0].stride * p.axes[1].stride * p.axes[2].stride > 1;
  const Grid tokens = token_grid(p);
  if (wanted.query && (is_strided || inputs.lengths)) fill(*gradients.query, tokens, p.heads, p.head_dim, 0.0f);
  if (wanted.key_value && inputs.lengths) {
    fill(*gradients.key, tokens, p.kv_heads, p.head_dim, 0.0f);
    fill(*gradients.value, tokens, p.kv_heads, p.value_dim, 0.0f);
  }
  const double products = 2.0 + (wanted.query ? 1.0 : 0.0) + (wanted.key_value ? 2.0 : 0.0);
  const double flops = products * static_cast<double>(p.batch * p.heads * p.queries()) *
                       static_cast<double>(p.kernel_volume() * (p.head_dim + p.value_dim));
  run_tasks(inputs, flops, gradients.rpb, [&](const Task& task) {
    NATTEN_DISPATCH(run_backward)(inputs, saved, gradients, task);
  });
}

}  // namespace natten::cpu
#endif  // HWY_ONCE
