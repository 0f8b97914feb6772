// The forward pass on a matrix unit: tiles of 16 queries in a box, and all keys of the box around their windows, some
// of them in vain. Lanes are keys in the softmax, where masks hide what a query does not attend. Included once per
// SIMD target.
#if defined(NATTEN_NATIVE_CPU_FORWARD_MATRIX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_FORWARD_MATRIX_INL_H_
#undef NATTEN_NATIVE_CPU_FORWARD_MATRIX_INL_H_
#else
#define NATTEN_NATIVE_CPU_FORWARD_MATRIX_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <limits>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "native/cpu/forward_plan.h"
#include "native/cpu/matrix_memory-inl.h"
#include "native/cpu/scratch.h"
#include "native/cpu/tile_extra-inl.h"
#include "native/cpu/tile_rows-inl.h"
#include "native/cpu/tile_softmax-inl.h"
#include "native/cpu/tuning.h"

#if HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {

class MatrixForward : MatrixMemory {
 public:
  MatrixForward(const forward::Pass& pass, const Task& task)
      : MatrixMemory(pass.inputs, task, {true, false}, 0, {{&pass.inputs.key, pass.inputs.problem.head_dim}},
                     {&pass.inputs.value, pass.inputs.problem.value_dim}, {}),
        pass_(pass),
        end_(pass.extra, p_),
        is_streamed_(p_.batch * p_.queries() * p_.heads * value_dim_ * 2 >= tuning::kStreamBytes) {}

  /// False, with the task undone, where a value is not finite.
  bool run() {
    if (region_.is_empty()) return true;
    plan_memory();
    pitch_ = round_up(value_dim_, kMatrixTile);
    raw_row_ = round_up(dim_, kMatrixStep);
    const std::int64_t query_size = kMatrixTile * raw_row_;
    const Scratch memory([&](Scratch& scratch) {
      take_memory(scratch);
      raw_queries_ = scratch.take<std::uint16_t>(query_size);
      queries_ = scratch.take<std::uint16_t>(query_size);
      scores_ = scratch.take<float>(kVectors * kTileSize);
      sums_ = scratch.take<float>(kMatrixTile * pitch_);
      end_.take_memory(scratch);
      if (pass_.extra.count() > 0) {
        for (float*& queries : float_queries_) queries = scratch.take<float>(query_size);
      }
    });
    clear_memory();
    std::fill_n(raw_queries_, query_size, std::uint16_t{0});  // rows without a query are multiplied too
    const MatrixRegisters registers(unit_);
    bool is_finite = true;
    for_each_band([&](const Span& q0s, const Span& q1s) {
      if (!is_finite) return;
      const MatrixBand band = band_of(q0s, q1s);
      is_finite = pack(band);
      if (!is_finite) return;
      for (const MatrixColumns& columns : columns_) {
        list_pairs(band, columns);
        const Span& kv_heads = region_.task.kv_heads;
        for (std::int64_t h = kv_heads.start * heads_; h < kv_heads.end * heads_; ++h) run_tile(h, band, columns);
      }
    });
    if (is_streamed_) hwy::FlushStream();
    return is_finite;
  }

 private:
  void run_tile(std::int64_t head, const MatrixBand& band, const MatrixColumns& columns) {
    for_each_row(band, [&](std::int64_t lane, std::int64_t q0, std::int64_t q1) {
      copy_rows(region_.query_rows(inputs_.query, head, q0, q1, columns.query), columns.count, dim_, raw_row_,
                raw_queries_ + lane * raw_row_, raw_row_);
    });
    transpose_in<false>(reinterpret_cast<const float*>(raw_queries_), raw_row_ / 2, raw_row_ / 2, 1.0f,
                        reinterpret_cast<float*>(queries_), kMatrixTile);
    if (p_.scale < 0) {  // the sign of the scale
      for (std::int64_t i = 0; i < kMatrixTile * raw_row_; ++i) queries_[i] ^= 0x8000u;
    }
    const std::int64_t kv_head = head / heads_;
    for (std::int64_t first = 0; first < pairs_; first += tuning::kMatrixChunk) {
      const std::int64_t count = std::min<std::int64_t>(pairs_ - first, tuning::kMatrixChunk);
      multiply_rows(0, kv_head, first, count, queries_, scores_);
      softmax(first, count);
      first == 0 ? multiply_pairs<false>(kv_head, first, count, sums_)
                 : multiply_pairs<true>(kv_head, first, count, sums_);
    }
    finish(head, band, columns);
  }

  /// Makes weights of the scores of some pairs of 16 keys, and brings the sums so far to the same maximum.
  void softmax(std::int64_t first, std::int64_t count) {
    const TileTag d;
    const auto lowest = hn::Set(d, std::numeric_limits<float>::lowest());
    const auto scale = hn::Set(d, std::abs(static_cast<float>(p_.scale)) * kLog2E);
    TileVec maxima[4] = {lowest, lowest, lowest, lowest};
    for (std::int64_t v = 0; v < 2 * count; ++v) {
      const float* scores = scores_ + v * kTileSize;
      NATTEN_UNROLL
      for (int key = 0; key < kMatrixTile; ++key) {
        TileVec& max = maxima[key % 4];
        max = hn::IfThenElse(mask_of(2 * first + v, key), hn::Max(max, hn::Load(d, scores + key * kLanes)), max);
      }
    }
    const auto chunk_max = hn::Max(hn::Max(maxima[0], maxima[1]), hn::Max(maxima[2], maxima[3]));
    const auto old_max = first == 0 ? lowest : max_;
    max_ = hn::Max(old_max, hn::Mul(chunk_max, scale));
    const auto max = max_;
    auto total0 = hn::Zero(d), total1 = total0;
    for (std::int64_t pair = 0; pair < count; ++pair) {
      const float* scores = scores_ + 2 * pair * kTileSize;
      NATTEN_UNROLL
      for (int key = 0; key < kMatrixTile; ++key) {
        const auto weight = [&](int i) __attribute__((always_inline)) {
          const auto score = hn::Load(d, scores + i * kTileSize + key * kLanes);
          return hn::IfThenElseZero(mask_of(2 * (first + pair) + i, key), exp2_float(hn::MulSub(score, scale, max)));
        };
        const auto weight0 = weight(0), weight1 = weight(1);
        total0 = hn::Add(total0, weight0);
        total1 = hn::Add(total1, weight1);
        store_pairs(weight0, weight1, pair_buffer_ + key * kMatrixTile);
      }
      store_weights(pair);
    }
    auto total = hn::Add(total0, total1);
    if (first > 0) {
      const auto factor = exp2_float(hn::Sub(old_max, max));
      total = hn::MulAdd(factor, total_, total);
      hn::Store(factor, d, end_.factors);
      scale_sums();
    }
    total_ = total;
  }

  /// sums *= factors of TileEnd
  void scale_sums() {
    for (std::int64_t lane = 0; lane < kMatrixTile; ++lane) {
      scale_row(sums_ + lane * pitch_, pitch_, end_.factors[lane]);
    }
  }

  void finish(std::int64_t head, const MatrixBand& band, const MatrixColumns& columns) {
    if (pass_.extra.count() > 0) {
      auto [rows, columns_of_channels] = float_queries_;
      load_rows(reinterpret_cast<const BFloat*>(raw_queries_), raw_row_, kMatrixTile, raw_row_, rows, raw_row_);
      transpose_in(rows, raw_row_, raw_row_, static_cast<float>(p_.scale) * kLog2E, columns_of_channels, kLanes);
    }
    end_.normalize(region_.task.plan->batch, head / heads_, float_queries_[1], max_, total_);
    scale_sums();
    end_.finish(kMatrixTile, sums_);
    for_each_row(band, [&](std::int64_t lane, std::int64_t q0, std::int64_t q1) {
      region_.for_each_entry(p_, head, q0, q1, columns.query, columns.count,
                             [&](int i, std::int64_t entry) { pass_.lse[entry] = end_.lse[lane + i]; });
      store_rows(sums_ + lane * pitch_, pitch_, columns.count, value_dim_,
                 region_.out_rows(pass_.out, head, q0, q1, columns.query), is_streamed_);
    });
  }

  const forward::Pass& pass_;
  TileEnd end_;
  const bool is_streamed_;                 ///< results are too large to stay in a cache
  std::int64_t pitch_;                     ///< floats of a row of sums
  std::int64_t raw_row_;                   ///< halfs of a query
  std::uint16_t *raw_queries_, *queries_;  ///< as they are; [channel / 2][query][channel % 2]
  float* scores_;                          ///< tiles [key][query]
  float* sums_;
  float* float_queries_[2] = {};  ///< where there are extra tokens: rows, and transposed
  TileVec max_, total_;           ///< of every query
};

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET == HWY_AVX3
#endif  // NATTEN_NATIVE_CPU_FORWARD_MATRIX_INL_H_
