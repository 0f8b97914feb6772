// Products of a few queries with keys, and sums of weighted values, of rows that are read where they lie. Included once
// per SIMD target.
#if defined(NATTEN_NATIVE_CPU_TILE_FEW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_TILE_FEW_INL_H_
#undef NATTEN_NATIVE_CPU_TILE_FEW_INL_H_
#else
#define NATTEN_NATIVE_CPU_TILE_FEW_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "hwy/highway.h"
#include "native/cpu/simd_convert-inl.h"
#include "native/cpu/tile_direct-inl.h"
#include "native/cpu/tile_products-inl.h"
#include "native/cpu/tile_softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Queries that share a load, and sums that stay in registers.
inline constexpr int kFewRows = 4;
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3
inline constexpr int kFewAccumulators = 8;
#else
inline constexpr int kFewAccumulators = 16;
#endif
inline constexpr int kFewVecs = kFewAccumulators / kFewRows;
/// Keys at a time of some queries.
constexpr int few_keys(int rows) {
  return std::min({rows == 1 ? 8 : rows == 2 ? kFewAccumulators / 2 : kFewAccumulators / 4, kLanes});
}

/// Keys or values where they lie, `stride` elements from one to the next. While one is read, what lies `ahead` elements
/// behind it is fetched, a line at a time: as many fetches at once as a head has would wait for each other.
template <class T>
struct FewRows {
  const T* data;
  std::int64_t stride, ahead;

  FewRows from(std::int64_t row) const { return {data + row * stride, stride, ahead}; }
  /// Every line once, where kVecs vectors are read at a time.
  template <int kVecs>
  HWY_INLINE void fetch(std::int64_t row, std::int64_t channel) const {
    constexpr std::int64_t kLine = 64 / sizeof(T);
    if (kVecs * kLanes >= kLine || channel % kLine == 0) {
      __builtin_prefetch(data + row * stride + channel + ahead, 0, 2);
    }
  }
};

/// Whether rows of such channels are taken two vectors at a time, of bfloat16 the even channels and then the odd ones:
/// what lies in the halves of a 32-bit lane is had by one operation each, the natural order costs a shuffle besides.
inline constexpr bool kHasPairs = kLanes > 1;
constexpr bool comes_in_pairs(FloatType type, std::int64_t dim) {
  return kHasPairs && type == FloatType::bfloat16 && dim % (2 * kLanes) == 0;
}
/// The next kVecs vectors of a row, in that order where they are two.
template <int kVecs, class T, class D = TileTag>
HWY_INLINE void load_vectors(const T* from, TileVec (&to)[kVecs], D d = {}) {
  if constexpr (kVecs == 1) {
    to[0] = load_float(d, from);
  } else {
    const hn::Repartition<std::uint16_t, D> d16;
    const hn::RebindToUnsigned<D> d32;
    const auto both = hn::BitCast(d32, hn::LoadU(d16, reinterpret_cast<const std::uint16_t*>(from)));
    to[0] = hn::BitCast(d, hn::ShiftLeft<16>(both));
    to[1] = hn::BitCast(d, hn::And(both, hn::Set(d32, 0xffff0000u)));
  }
}

/// Brings `count` channels into that order, and back.
inline void pair_channels(float* row, std::int64_t count) {
  const TileTag d;
  for (std::int64_t c = 0; c < count; c += 2 * kLanes) {
    TileVec even, odd;
    hn::LoadInterleaved2(d, row + c, even, odd);
    hn::Store(even, d, row + c);
    hn::Store(odd, d, row + c + kLanes);
  }
}
inline void unpair_channels(float* row, std::int64_t count) {
  const TileTag d;
  for (std::int64_t c = 0; c < count; c += 2 * kLanes) {
    hn::StoreInterleaved2(hn::Load(d, row + c), hn::Load(d, row + c + kLanes), d, row + c);
  }
}

/// partial[row][key][lane] = lane by lane products of kRows queries with kKeys keys.
template <int kRows, int kKeys, int kVecs, class T>
HWY_INLINE void multiply_few_keys(const FewRows<T>& keys, const float* queries, std::int64_t pitch, float* partial) {
  const TileTag d;
  TileVec sums[kRows][kKeys];
  NATTEN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    NATTEN_UNROLL
    for (int k = 0; k < kKeys; ++k) sums[r][k] = hn::Zero(d);
  }
  for (std::int64_t c = 0; c < pitch; c += kVecs * kLanes) {
    TileVec query[kRows][kVecs];
    NATTEN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      NATTEN_UNROLL
      for (int v = 0; v < kVecs; ++v) query[r][v] = hn::Load(d, queries + r * pitch + c + v * kLanes);
    }
    NATTEN_UNROLL
    for (int k = 0; k < kKeys; ++k) {
      keys.template fetch<kVecs>(k, c);
      TileVec key[kVecs];
      load_vectors(keys.data + k * keys.stride + c, key);
      NATTEN_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        NATTEN_UNROLL
        for (int r = 0; r < kRows; ++r) sums[r][k] = hn::MulAdd(query[r][v], key[v], sums[r][k]);
      }
    }
  }
  NATTEN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    NATTEN_UNROLL
    for (int k = 0; k < kKeys; ++k) hn::Store(sums[r][k], d, partial + (r * kLanes + k) * kLanes);
  }
}

/// scores[row][key] = query . key of kLanes keys, of which `count` are there and the others yield anything.
template <int kRows, int kVecs, class T>
void multiply_few_rows(const FewRows<T>& keys, std::int64_t count, const float* queries, std::int64_t pitch,
                       float* partial, float* scores, std::int64_t score_pitch) {
  constexpr int kKeys = few_keys(kRows);
  std::int64_t k = 0;
  for (; k + kKeys <= count; k += kKeys) {
    multiply_few_keys<kRows, kKeys, kVecs>(keys.from(k), queries, pitch, partial + k * kLanes);
  }
  for (; k < count; ++k) multiply_few_keys<kRows, 1, kVecs>(keys.from(k), queries, pitch, partial + k * kLanes);
  for (int r = 0; r < kRows; ++r) {
    hn::Store(sums_of_lanes(partial + r * kLanes * kLanes), TileTag(), scores + r * score_pitch);
  }
}

/// Calls visit(integral_constant of vectors at a time) for rows of `dim` channels.
template <class T, class Visit>
HWY_INLINE void with_vectors_of(std::int64_t dim, Visit&& visit) {
  if constexpr (kHasPairs && std::is_same_v<T, BFloat>) {
    if (comes_in_pairs(FloatType::bfloat16, dim)) return visit(std::integral_constant<int, 2>());
  }
  visit(std::integral_constant<int, 1>());
}

/// The same of any number of rows.
template <class T>
HWY_INLINE void multiply_few(const FewRows<T>& keys, std::int64_t count, const float* queries, std::int64_t pitch,
                             std::int64_t rows, float* partial, float* scores, std::int64_t score_pitch) {
  with_vectors_of<T>(pitch, [&](auto vecs) {
    constexpr int kVecs = vecs();
    static constexpr std::array kFunctions = {multiply_few_rows<1, kVecs, T>, multiply_few_rows<2, kVecs, T>,
                                              multiply_few_rows<3, kVecs, T>, multiply_few_rows<4, kVecs, T>};
    for_each_piece(static_cast<int>(rows), kFewRows, [&](int row, int piece) {
      kFunctions[piece - 1](keys, count, queries + row * pitch, pitch, partial, scores + row * score_pitch,
                            score_pitch);
    });
  });
}

/// sums[row] += sum of weight * value, kVecs vectors of channels, kStep at a time.
template <int kRows, int kVecs, int kStep, class T>
HWY_INLINE void add_few_channels(const FewRows<T>& values, std::int64_t channel, std::int64_t count,
                                 const float* weights, std::int64_t weight_pitch, float* to, std::int64_t pitch) {
  const TileTag d;
  TileVec sums[kRows][kVecs];
  NATTEN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    NATTEN_UNROLL
    for (int v = 0; v < kVecs; ++v) sums[r][v] = hn::Load(d, to + r * pitch + v * kLanes);
  }
  const T* value_row = values.data + channel;
  for (std::int64_t k = 0; k < count; ++k, value_row += values.stride) {
    TileVec weight[kRows];
    NATTEN_UNROLL
    for (int r = 0; r < kRows; ++r) weight[r] = hn::Set(d, weights[r * weight_pitch + k]);
    NATTEN_UNROLL
    for (int v = 0; v < kVecs; v += kStep) {
      values.template fetch<kStep>(k, channel + v * kLanes);
      TileVec value[kStep];
      load_vectors(value_row + v * kLanes, value);
      NATTEN_UNROLL
      for (int s = 0; s < kStep; ++s) {
        NATTEN_UNROLL
        for (int r = 0; r < kRows; ++r) sums[r][v + s] = hn::MulAdd(weight[r], value[s], sums[r][v + s]);
      }
    }
  }
  NATTEN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    NATTEN_UNROLL
    for (int v = 0; v < kVecs; ++v) hn::Store(sums[r][v], d, to + r * pitch + v * kLanes);
  }
}

template <int kRows, int kStep, class T>
void add_few_rows(const FewRows<T>& values, std::int64_t count, const float* weights, std::int64_t weight_pitch,
                  float* to, std::int64_t pitch) {
  std::int64_t c = 0;
  for (; c + kFewVecs * kLanes <= pitch; c += kFewVecs * kLanes) {
    add_few_channels<kRows, kFewVecs, kStep>(values, c, count, weights, weight_pitch, to + c, pitch);
  }
  for (; c < pitch; c += kStep * kLanes) {
    add_few_channels<kRows, kStep, kStep>(values, c, count, weights, weight_pitch, to + c, pitch);
  }
}

/// Of at most kFewRows rows.
template <class T>
HWY_INLINE void add_few_values(const FewRows<T>& values, std::int64_t count, const float* weights,
                               std::int64_t weight_pitch, int rows, float* to, std::int64_t pitch) {
  with_vectors_of<T>(pitch, [&](auto vecs) {
    constexpr int kStep = vecs();
    static constexpr std::array kFunctions = {add_few_rows<1, kStep, T>, add_few_rows<2, kStep, T>,
                                              add_few_rows<3, kStep, T>, add_few_rows<4, kStep, T>};
    kFunctions[rows - 1](values, count, weights, weight_pitch, to, pitch);
  });
}

/// What is known of rows after some of their keys: sums of values [row][pitch], maxima of logits and sums of
/// exponentials [row].
class FewSums {
 public:
  FewSums(float* memory, std::int64_t rows, std::int64_t pitch) : memory_(memory), rows_(rows), pitch_(pitch) {}

  float* of(std::int64_t row) const { return memory_ + row * pitch_; }

  void clear() const {
    std::fill_n(memory_, rows_ * pitch_, 0.0f);
    std::fill_n(maxima(0), rows_, std::numeric_limits<float>::lowest());
    std::fill_n(totals(0), rows_, 0.0f);
  }

  /// Makes weights of some more logits of a row, `count` of them, whole vectors.
  void weigh(std::int64_t row, float* scores, std::int64_t count) const {
    const TileTag d;
    float &max = maxima(0)[row], &total = totals(0)[row];
    TileVec highest = hn::Set(d, max);
    for (std::int64_t k = 0; k < count; k += kLanes) highest = hn::Max(highest, hn::Load(d, scores + k));
    highest = hn::MaxOfLanes(d, highest);
    const float factor = hn::GetLane(exp2_float(hn::Sub(hn::Set(d, max), highest)));
    TileVec sum = hn::Zero(d);
    for (std::int64_t k = 0; k < count; k += kLanes) {
      const TileVec weight = exp2_float(hn::Sub(hn::Load(d, scores + k), highest));
      hn::Store(weight, d, scores + k);
      sum = hn::Add(sum, weight);
    }
    max = hn::GetLane(highest);
    total = factor * total + hn::GetLane(hn::SumOfLanes(d, sum));
    if (factor != 1.0f) scale_row(of(row), pitch_, factor);
  }

  /// Adds the sums of the segments behind the first one, `step` floats from one to the next, to its own. The last one
  /// may be of extra tokens (`has_extra`): these, and the others together, weigh nothing without a logit but -inf.
  Normalizer join(std::int64_t row, std::int64_t segments, std::int64_t step, bool has_extra) const {
    const TileTag d;
    float max = maxima(0)[row];
    for (std::int64_t s = 1; s < segments; ++s) max = std::max(max, maxima(s * step)[row]);
    float total = 0.0f;
    bool is_empty = true;
    for (std::int64_t s = 0; s < segments; ++s) {
      if (has_extra && s + 1 == segments) {
        if (is_empty) std::fill_n(of(row), pitch_, 0.0f);
        if (totals(s * step)[row] == 0) break;
      }
      is_empty &= totals(s * step)[row] == 0;
      const TileVec factor = exp2_float(hn::Set(d, maxima(s * step)[row] - max));
      total += hn::GetLane(factor) * totals(s * step)[row];
      const float* from = of(row) + s * step;
      for (std::int64_t c = 0; c < pitch_; c += kLanes) {
        const TileVec old = s == 0 ? hn::Zero(d) : hn::Load(d, of(row) + c);
        hn::Store(hn::MulAdd(factor, hn::Load(d, from + c), old), d, of(row) + c);
      }
    }
    return Normalizer(hn::Set(d, max), hn::Set(d, total));
  }

 private:
  float* maxima(std::int64_t offset) const { return memory_ + offset + rows_ * pitch_; }
  float* totals(std::int64_t offset) const { return maxima(offset) + rows_; }

  float* memory_;
  std::int64_t rows_, pitch_;
};

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_TILE_FEW_INL_H_
