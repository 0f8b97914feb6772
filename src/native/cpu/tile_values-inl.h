// Sums of values weighted by probabilities, for a few queries of a tile at a time: lanes are channels. Included once
// per SIMD target.
#if defined(NATTEN_NATIVE_CPU_TILE_VALUES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_TILE_VALUES_INL_H_
#undef NATTEN_NATIVE_CPU_TILE_VALUES_INL_H_
#else
#define NATTEN_NATIVE_CPU_TILE_VALUES_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "native/cpu/backward_tiles-inl.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Queries at a time. With the vectors of channels that follow, 16 accumulators (8 where there are 16 registers).
inline constexpr int kQueries = 4;
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3
inline constexpr int kMostVectors = 2;
#else
inline constexpr int kMostVectors = 4;
#endif

/// Rows of keys of one row of queries: `planes` runs of `rows`.
struct ValueRows {
  const float* probabilities;  ///< [plane][row][slot][lane], of the first query; lanes are queries
  std::int64_t plane_scores, row_scores;
  const float* values;  ///< [plane][row][place][pitch], slot 0 of the first query, first channel
  std::int64_t plane_values, row_values;
  std::int64_t planes, rows;
  std::int64_t slots;
  std::int64_t pitch;
  std::int64_t first_slot[kQueries];  ///< slots before it are empty
  std::int64_t offset[kQueries];      ///< places from the first query's slot 0
  const float* factor;                ///< of every query
  float* sums;                        ///< [query][pitch]
};

template <int kVectors>
struct ValueSums {
  TileVec sum[kQueries][kVectors];

  HWY_INLINE ValueSums() {
    NATTEN_UNROLL
    for (int q = 0; q < kQueries; ++q) {
      NATTEN_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[q][v] = hn::Zero(TileTag());
    }
  }

  /// Adds one value to queries [kBegin, kEnd), whose slots for it are one apart (kStep -1) or the same (0).
  template <int kBegin, int kEnd, int kStep>
  HWY_INLINE void add(const float* value, const float* probability) {
    const TileTag d;
    TileVec x[kVectors];
    NATTEN_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      x[v] = hn::Load(d, value + v * kLanes);
      keep_in_register(x[v]);
    }
    NATTEN_UNROLL
    for (int q = kBegin; q < kEnd; ++q) {
      TileVec p = hn::Set(d, probability[kStep * q * kLanes + q]);
      if constexpr (kVectors > 1) keep_in_register(p);
      NATTEN_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[q][v] = hn::MulAdd(p, x[v], sum[q][v]);
    }
  }

  /// Adds a run of slots to query kQuery alone.
  template <int kQuery>
  HWY_INLINE void add_run(const ValueRows& r, const float* values, const float* probabilities, std::int64_t begin,
                          std::int64_t end) {
    for (std::int64_t s = begin; s < end; ++s) {
      add<kQuery, kQuery + 1, 0>(values + (r.offset[kQuery] + s) * r.pitch, probabilities + s * kLanes);
    }
  }

  HWY_INLINE void store(const ValueRows& r, int queries) const {
    const TileTag d;
    NATTEN_UNROLL
    for (int q = 0; q < kQueries; ++q) {
      if (q >= queries) break;
      const auto factor = hn::Set(d, r.factor[q]);
      NATTEN_UNROLL
      for (int v = 0; v < kVectors; ++v) hn::Store(hn::Mul(factor, sum[q][v]), d, r.sums + q * r.pitch + v * kLanes);
    }
  }
};

template <class Visit>
HWY_INLINE void for_each_value_row(const ValueRows& r, Visit&& visit) {
  for (std::int64_t plane = 0; plane < r.planes; ++plane) {
    const float* probabilities = r.probabilities + plane * r.plane_scores;
    const float* values = r.values + plane * r.plane_values;
    for (std::int64_t row = 0; row < r.rows; ++row, probabilities += r.row_scores, values += r.row_values) {
      visit(probabilities, values);
    }
  }
}

/// The windows of the queries move on by one place each: the band of their keys, without waste. kSlots is the number of
/// slots, or 0 for any number from 3 up.
template <int kVectors, int kSlots>
void add_values_of_band(const ValueRows& r) {
  ValueSums<kVectors> sums;
  const std::int64_t pitch = r.pitch;
  for_each_value_row(r, [&](const float* probabilities, const float* values) HWY_ATTR {
    sums.template add<0, 1, -1>(values, probabilities);
    sums.template add<0, 2, -1>(values + pitch, probabilities + kLanes);
    sums.template add<0, 3, -1>(values + 2 * pitch, probabilities + 2 * kLanes);
    values += 3 * pitch;
    probabilities += 3 * kLanes;
    if constexpr (kSlots > 0) {
      NATTEN_UNROLL
      for (int s = 3; s < kSlots; ++s, values += pitch, probabilities += kLanes) {
        sums.template add<0, 4, -1>(values, probabilities);
      }
    } else {
      for (std::int64_t s = 3; s < r.slots; ++s, values += pitch, probabilities += kLanes) {
        sums.template add<0, 4, -1>(values, probabilities);
      }
    }
    sums.template add<1, 4, -1>(values, probabilities);
    sums.template add<2, 4, -1>(values + pitch, probabilities + kLanes);
    sums.template add<3, 4, -1>(values + 2 * pitch, probabilities + 2 * kLanes);
  });
  sums.store(r, kQueries);
}

/// All queries have the same window.
template <int kVectors>
void add_values_of_shared_window(const ValueRows& r) {
  ValueSums<kVectors> sums;
  for_each_value_row(r, [&](const float* probabilities, const float* values) HWY_ATTR {
    values += r.offset[0] * r.pitch;
    for (std::int64_t s = 0; s < r.slots; ++s, values += r.pitch, probabilities += kLanes) {
      sums.template add<0, kQueries, 0>(values, probabilities);
    }
  });
  sums.store(r, kQueries);
}

/// Any windows, of `queries` <= kQueries queries.
template <int kVectors>
void add_values_of_windows(const ValueRows& r, int queries) {
  ValueSums<kVectors> sums;
  std::int64_t common = 0;
  for (int q = 0; q < queries; ++q) common = common < r.first_slot[q] ? r.first_slot[q] : common;
  for_each_value_row(r, [&](const float* probabilities, const float* values) HWY_ATTR {
    sums.template add_run<0>(r, values, probabilities, r.first_slot[0], common);
    if (queries > 1) sums.template add_run<1>(r, values, probabilities, r.first_slot[1], common);
    if (queries > 2) sums.template add_run<2>(r, values, probabilities, r.first_slot[2], common);
    if (queries > 3) sums.template add_run<3>(r, values, probabilities, r.first_slot[3], common);
    if (queries == kQueries) {
      for (std::int64_t s = common; s < r.slots; ++s) {
        sums.template add<0, 1, 0>(values + (r.offset[0] + s) * r.pitch, probabilities + s * kLanes);
        sums.template add<1, 2, 0>(values + (r.offset[1] + s) * r.pitch, probabilities + s * kLanes);
        sums.template add<2, 3, 0>(values + (r.offset[2] + s) * r.pitch, probabilities + s * kLanes);
        sums.template add<3, 4, 0>(values + (r.offset[3] + s) * r.pitch, probabilities + s * kLanes);
      }
    } else {
      sums.template add_run<0>(r, values, probabilities, common, r.slots);
      if (queries > 1) sums.template add_run<1>(r, values, probabilities, common, r.slots);
      if (queries > 2) sums.template add_run<2>(r, values, probabilities, common, r.slots);
    }
  });
  sums.store(r, queries);
}

/// Picks the function for the windows of these queries.
template <int kVectors>
HWY_INLINE void add_values(const ValueRows& r, int queries) {
  bool is_band = queries == kQueries, is_shared = is_band;
  for (int q = 0; q < queries; ++q) {
    is_band &= r.first_slot[q] == 0 && r.offset[q] == r.offset[0] + q;
    is_shared &= r.first_slot[q] == 0 && r.offset[q] == r.offset[0];
  }
  if (is_band && r.slots >= 3) {
    ValueRows band = r;
    band.values += r.offset[0] * r.pitch;
    switch (r.slots) {
      case 3:
        return add_values_of_band<kVectors, 3>(band);
      case 5:
        return add_values_of_band<kVectors, 5>(band);
      case 7:
        return add_values_of_band<kVectors, 7>(band);
      default:
        return add_values_of_band<kVectors, 0>(band);
    }
  }
  if (is_shared) return add_values_of_shared_window<kVectors>(r);
  add_values_of_windows<kVectors>(r, queries);
}

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_TILE_VALUES_INL_H_
