// Extra tokens and a tile of queries, all of which attend them: dense products. Included once per SIMD target.
#if defined(NATTEN_NATIVE_CPU_TILE_EXTRA_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_TILE_EXTRA_INL_H_
#undef NATTEN_NATIVE_CPU_TILE_EXTRA_INL_H_
#else
#define NATTEN_NATIVE_CPU_TILE_EXTRA_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "hwy/highway.h"
#include "native/cpu/extra_tokens.h"
#include "native/cpu/scratch.h"
#include "native/cpu/tile_dense-inl.h"
#include "native/cpu/tile_softmax-inl.h"
#include "native/cpu/tuning.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// sums[row] += sum over k of weights[row * weight_row + k * weight_step] * from[k]; rows of `from` and of `sums` have
/// whole vectors of channels, `width` floats.
HWY_INLINE void add_weighted_rows(const float* weights, std::int64_t weight_row, std::int64_t weight_step,
                                  std::int64_t rows, const float* from, std::int64_t from_pitch, std::int64_t count,
                                  float* sums, std::int64_t pitch, std::int64_t width) {
  for (std::int64_t c = 0; c < width; c += kMostVecs * kLanes) {
    multiply_dense<true>({weights,
                          weight_row,
                          weight_step,
                          {from + c, from + c + kLanes},
                          from_pitch,
                          count,
                          {sums + c, sums + c + kLanes},
                          pitch},
                         static_cast<int>(rows), c + kLanes < width ? 2 : 1);
  }
}

/// The end of the softmax of a tile: joins the extra tokens, which all of its queries attend, to their windows.
class TileEnd {
 public:
  TileEnd(const ExtraTokens& tokens, const Problem& p)
      : tokens_(tokens), dim_(p.head_dim), pitch_(round_up(p.value_dim, kLanes)) {}

  void take_memory(Scratch& scratch) {
    factors = scratch.take<float>(kLanes);
    lse = scratch.take<float>(kLanes);
    for (float*& part : empty_) part = scratch.take<float>(kLanes);
    weights_ = scratch.take<float>(tokens_.count() * kLanes);
  }

  /// From the maxima and the sums of exponentials of windows. `queries`: [channel][lane], for base-2 logits; read only
  /// where there are extra tokens.
  HWY_INLINE void normalize(std::int64_t sample, std::int64_t kv_head, const float* queries, TileVec max,
                            TileVec total) {
    if (HWY_UNLIKELY(tokens_.count() > 0)) return join(sample, kv_head, queries, max, total);
    const Normalizer normalizer(max, total);
    hn::Store(normalizer.factor, TileTag(), factors);
    hn::Store(normalizer.lse, TileTag(), lse);
    if (normalizer.has_empty) hn::Store(normalizer.lse, TileTag(), empty_[0]);
    has_empty_[0] = normalizer.has_empty;
  }

  /// From the sums of windows' values times `factors`, [lane][pitch], to the results.
  HWY_INLINE void finish(int count, float* rows) const {
    if (has_empty_[0]) clear_empty_rows(empty_[0], count, rows, pitch_);
    if (HWY_UNLIKELY(tokens_.count() > 0)) add_values(count, rows);
  }

  float *factors, *lse;  ///< of every lane: of its window's values; the natural logarithm

 private:
  HWY_NOINLINE void join(std::int64_t sample, std::int64_t kv_head, const float* queries, TileVec max, TileVec total) {
    const TileTag d;
    values_ = tokens_.values(sample, kv_head);
    multiply_dense<false>(
        {tokens_.keys(sample, kv_head), tokens_.pitch(), 1, {queries}, kLanes, dim_, {weights_}, kLanes},
        static_cast<int>(tokens_.count()), 1);
    const ScoreRow row{weights_, 1, 0, tokens_.count()};
    const TileVec own_max = max_of(row), joint_max = hn::Max(max, own_max);
    const TileVec own_total = exp2_row(row, joint_max), share = exp2_float(hn::Sub(max, joint_max));
    const Normalizer joint(joint_max, hn::MulAdd(total, share, own_total));
    hn::Store(hn::Mul(joint.factor, share), d, factors);
    hn::Store(joint.lse, d, lse);
    for (std::int64_t i = 0; i < tokens_.count() * kLanes; i += kLanes) {
      hn::Store(hn::Mul(joint.factor, hn::Load(d, weights_ + i)), d, weights_ + i);
    }
    const auto lowest = hn::Set(d, std::numeric_limits<float>::lowest()), zero = hn::Zero(d);
    mark(0, hn::Eq(total, zero));
    mark(1, hn::And(hn::Eq(own_max, lowest), hn::Eq(own_total, zero)));
  }

  void mark(int part, hn::Mask<TileTag> is_empty) {
    const TileTag d;
    has_empty_[part] = !hn::AllFalse(d, is_empty);
    hn::Store(hn::IfThenElseZero(is_empty, hn::Set(d, -std::numeric_limits<float>::infinity())), d, empty_[part]);
  }

  HWY_NOINLINE void add_values(int count, float* rows) const {
    const auto add = [&](int lane, int lanes) {
      add_weighted_rows(weights_ + lane, 1, kLanes, lanes, values_, tokens_.value_pitch(), tokens_.count(),
                        rows + lane * pitch_, pitch_, pitch_);
    };
    if (!has_empty_[1]) return add(0, count);
    for (int lane = 0; lane < count; ++lane) {
      if (empty_[1][lane] == 0) add(lane, 1);
    }
  }

  const ExtraTokens& tokens_;
  const std::int64_t dim_, pitch_;
  // Of windows, of extra tokens: a part without a logit but -inf weighs nothing, whatever its values are.
  float* empty_[2];  ///< of every lane -inf where it is
  bool has_empty_[2] = {};
  float* weights_;  ///< [token][lane]
  const float* values_ = nullptr;
};

/// What the gradients of a packed tile have of extra tokens.
struct ExtraGradients {
  const ExtraTokens& tokens;
  std::int64_t sample, kv_head, dim, value_dim;
  float* memory;  ///< size() floats
  float* sums;    ///< of keys, then of values, like the tokens; or null

  static constexpr std::int64_t size() { return 2 * tuning::kDenseKeys * kLanes; }

  /// Adds those of the queries `counted`: dq (without its scale) to `dquery` [channel][lane]. `query` is transposed as
  /// for base-2 logits, or rows times the scale.
  void add(const float* query_t, const float* dout_t, const float* query, const float* dout, const float* lse,
           const float* delta, hn::Mask<TileTag> counted, float* dquery) const {
    const TileTag d;
    const std::int64_t pitch = tokens.pitch(), value_pitch = tokens.value_pitch();
    const std::int64_t width = round_up(dim, kLanes), value_width = round_up(value_dim, kLanes);
    const auto lses = hn::Load(d, lse), deltas = hn::Load(d, delta);
    const auto kept = hn::AndNot(are_lowest(lses), counted);
    float *probabilities = memory, *dlogits = memory + size() / 2;
    for (std::int64_t first = 0; first < tokens.count(); first += tuning::kDenseKeys) {
      const auto count = static_cast<int>(std::min<std::int64_t>(tuning::kDenseKeys, tokens.count() - first));
      const float* keys = tokens.keys(sample, kv_head) + first * pitch;
      const float* values = tokens.values(sample, kv_head) + first * value_pitch;
      multiply_dense<false>({keys, pitch, 1, {query_t}, kLanes, dim, {probabilities}, kLanes}, count, 1);
      multiply_dense<false>({values, value_pitch, 1, {dout_t}, kLanes, value_dim, {dlogits}, kLanes}, count, 1);
      for (std::int64_t i = 0; i < count * kLanes; i += kLanes) {
        const auto probability = exp2_float(hn::Sub(hn::Load(d, probabilities + i), lses));
        const auto dlogit = hn::Mul(probability, hn::Sub(hn::Load(d, dlogits + i), deltas));
        hn::Store(hn::IfThenElseZero(kept, probability), d, probabilities + i);
        hn::Store(hn::IfThenElseZero(kept, dlogit), d, dlogits + i);
      }
      multiply_dense<true>({keys, 1, pitch, {dlogits}, kLanes, count, {dquery}, kLanes}, static_cast<int>(dim), 1);
      if (sums == nullptr) continue;
      add_weighted_rows(dlogits, kLanes, 1, count, query, width, kLanes, sums + first * pitch, pitch, width);
      add_weighted_rows(probabilities, kLanes, 1, count, dout, value_width, kLanes,
                        sums + tokens.count() * pitch + first * value_pitch, value_pitch, value_width);
    }
  }
};

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_TILE_EXTRA_INL_H_
