// Softmax of a tile of queries: lanes are queries, every vector is one key. Included once per SIMD target.
#if defined(NATTEN_NATIVE_CPU_TILE_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_TILE_SOFTMAX_INL_H_
#undef NATTEN_NATIVE_CPU_TILE_SOFTMAX_INL_H_
#else
#define NATTEN_NATIVE_CPU_TILE_SOFTMAX_INL_H_
#endif

#include <cstdint>
#include <limits>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "native/cpu/tile_products-inl.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

/// 2^x for x <= 128, relative error 2e-7; 0 from -126.5 down, NaN for NaN.
HWY_INLINE TileVec exp2_float(TileVec x) {
  const TileTag d;
  const hn::Rebind<std::int32_t, TileTag> di;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits; 127 more makes it a biased exponent.
  const auto magic = hn::Set(d, 12582912.0f + 127.0f);
  const auto least = hn::Set(d, -127.0f);
#if HWY_ARCH_X86 && HWY_TARGET != HWY_SCALAR && HWY_TARGET != HWY_EMU128
  const auto bounded = hn::Max(least, x);  // in this order x86 keeps a NaN
#else
  // Arm's maximum of a number and a NaN is the number.
  const auto bounded = hn::IfThenElse(hn::Lt(x, least), least, x);
#endif
  const auto shifted = hn::Add(bounded, magic);
  const auto r = hn::Sub(bounded, hn::Sub(shifted, magic));
  auto y = hn::Set(d, 1.326472614891827e-3f);  // minimax polynomial of 2^r on [-1/2, 1/2]
  y = hn::MulAdd(y, r, hn::Set(d, 9.671512991189957e-3f));
  y = hn::MulAdd(y, r, hn::Set(d, 5.550733581185341e-2f));
  y = hn::MulAdd(y, r, hn::Set(d, 2.4022242426872253e-1f));
  y = hn::MulAdd(y, r, hn::Set(d, 6.931470036506653e-1f));
  y = hn::MulAdd(y, r, hn::Set(d, 1.0f));
  return hn::Mul(y, hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, shifted))));
}

/// `chunks` runs of `slots` vectors, `pitch` floats from one run to the next.
struct ScoreRow {
  float* scores;
  std::int64_t chunks, pitch, slots;
};

/// The maximum of all scores, or the lowest number where all are -inf, which may be subtracted from them.
HWY_INLINE TileVec max_of(const ScoreRow& row) {
  const TileTag d;
  const auto lowest = hn::Set(d, std::numeric_limits<float>::lowest());
  TileVec max0 = lowest, max1 = lowest, max2 = lowest, max3 = lowest;
  for (std::int64_t chunk = 0; chunk < row.chunks; ++chunk) {
    const float* s = row.scores + chunk * row.pitch;
    std::int64_t i = 0;
    for (; i + 4 <= row.slots; i += 4, s += 4 * kLanes) {
      max0 = hn::Max(max0, hn::Load(d, s));
      max1 = hn::Max(max1, hn::Load(d, s + kLanes));
      max2 = hn::Max(max2, hn::Load(d, s + 2 * kLanes));
      max3 = hn::Max(max3, hn::Load(d, s + 3 * kLanes));
    }
    for (; i < row.slots; ++i, s += kLanes) max0 = hn::Max(max0, hn::Load(d, s));
  }
  return hn::Max(hn::Max(max0, max1), hn::Max(max2, max3));
}

/// Lanes that are -inf.
HWY_INLINE hn::Mask<TileTag> are_lowest(TileVec x) {
  return hn::Eq(x, hn::Set(TileTag(), -std::numeric_limits<float>::infinity()));
}

/// Replaces every score x by 2^(x - max) and returns their sum, lane by lane: 0 where all scores are -inf.
HWY_INLINE TileVec exp2_row(const ScoreRow& row, TileVec max) {
  const TileTag d;
  TileVec sum0 = hn::Zero(d), sum1 = sum0;
  for (std::int64_t chunk = 0; chunk < row.chunks; ++chunk) {
    float* s = row.scores + chunk * row.pitch;
    std::int64_t i = 0;
    for (; i + 2 <= row.slots; i += 2, s += 2 * kLanes) {
      const auto p0 = exp2_float(hn::Sub(hn::Load(d, s), max));
      const auto p1 = exp2_float(hn::Sub(hn::Load(d, s + kLanes), max));
      hn::Store(p0, d, s);
      hn::Store(p1, d, s + kLanes);
      sum0 = hn::Add(sum0, p0);
      sum1 = hn::Add(sum1, p1);
    }
    if (i < row.slots) {
      const auto p = exp2_float(hn::Sub(hn::Load(d, s), max));
      hn::Store(p, d, s);
      sum0 = hn::Add(sum0, p);
    }
  }
  return hn::Add(sum0, sum1);
}

/// What follows from the maxima and sums of exp2_row(), lane by lane.
struct Normalizer {
  TileVec factor;  ///< of the exponentials; 0 where all scores are -inf
  TileVec lse;     ///< natural logarithm
  bool has_empty;  ///< a lane has no score but -inf

  HWY_INLINE Normalizer(TileVec max, TileVec sum) : has_empty(false) {
    const TileTag d;
    factor = hn::Div(hn::Set(d, 1.0f), sum);
    lse = hn::MulAdd(max, hn::Set(d, kLn2), hn::Log(d, sum));
    if (HWY_LIKELY(hn::AllTrue(d, hn::Gt(sum, hn::Zero(d))))) return;
    // Log makes numbers of NaN and 0.
    const auto is_empty = hn::Eq(sum, hn::Zero(d));
    has_empty = !hn::AllFalse(d, is_empty);
    factor = hn::IfThenZeroElse(is_empty, factor);
    lse = hn::IfThenElse(hn::IsNaN(sum), sum, lse);
    lse = hn::IfThenElse(is_empty, hn::Set(d, -std::numeric_limits<float>::infinity()), lse);
  }
};

/// Zeros the rows of the queries whose lse is -inf: a weight of 0 times an infinite value is none.
HWY_INLINE void clear_empty_rows(const float* lse, int count, float* rows, std::int64_t pitch) {
  for (int q = 0; q < count; ++q) {
    if (lse[q] == -std::numeric_limits<float>::infinity()) {
      for (std::int64_t c = 0; c < pitch; c += kLanes) hn::Store(hn::Zero(TileTag()), TileTag(), rows + q * pitch + c);
    }
  }
}

/// What is known of a tile after some of its keys: sums of values [lane][pitch], maxima and sums of exponentials.
struct RunningSums {
  float* sums;
  std::int64_t pitch;

  static std::int64_t size(std::int64_t pitch) { return kLanes * (pitch + 2); }
  float* maxima() const { return sums + kLanes * pitch; }
  float* totals() const { return maxima() + kLanes; }

  void clear() const {
    const TileTag d;
    for (std::int64_t i = 0; i < size(pitch); i += kLanes) hn::Store(hn::Zero(d), d, sums + i);
    hn::Store(hn::Set(d, std::numeric_limits<float>::lowest()), d, maxima());
  }

  /// Adds further keys: maximum and sum of their exponentials. Makes `factors` for the values of these keys, and
  /// `old_factors` for the sums so far.
  void add(TileVec max, TileVec total, float* factors, float* old_factors) const {
    const TileTag d;
    const TileVec old_max = hn::Load(d, maxima()), new_max = hn::Max(old_max, max);
    const TileVec old_factor = exp2_float(hn::Sub(old_max, new_max)), factor = exp2_float(hn::Sub(max, new_max));
    hn::Store(new_max, d, maxima());
    hn::Store(hn::MulAdd(total, factor, hn::Mul(old_factor, hn::Load(d, totals()))), d, totals());
    hn::Store(factor, d, factors);
    hn::Store(old_factor, d, old_factors);
  }

  /// sums = old_factors * sums + values
  void add_values(int count, const float* old_factors, const float* values) const {
    const TileTag d;
    for (int q = 0; q < count; ++q) {
      const TileVec factor = hn::Set(d, old_factors[q]);
      for (std::int64_t c = q * pitch; c < (q + 1) * pitch; c += kLanes) {
        hn::Store(hn::MulAdd(factor, hn::Load(d, sums + c), hn::Load(d, values + c)), d, sums + c);
      }
    }
  }

  /// sums *= factors
  void scale(int count, const float* factors) const {
    for (int q = 0; q < count; ++q) scale_row(sums + q * pitch, pitch, factors[q]);
  }
};

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_TILE_SOFTMAX_INL_H_
