// Sums of values weighted by probabilities, for a few queries of a tile at a time: lanes are channels. Included once
// per SIMD target.
#if defined(NATTEN_NATIVE_CPU_TILE_VALUES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_TILE_VALUES_INL_H_
#undef NATTEN_NATIVE_CPU_TILE_VALUES_INL_H_
#else
#define NATTEN_NATIVE_CPU_TILE_VALUES_INL_H_
#endif

#include <cstdint>
#include <type_traits>

#include "hwy/highway.h"
#include "native/cpu/backward_plan.h"
#include "native/cpu/backward_tiles-inl.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The sums live in registers only where GCC inlines the loop bodies.
#undef NATTEN_INLINE_LAMBDA
#define NATTEN_INLINE_LAMBDA __attribute__((always_inline))

/// Queries at a time. With the vectors of channels that follow, 16 accumulators (8 where there are 16 registers).
inline constexpr int kQueries = 4;
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3
inline constexpr int kMostVectors = 2;
#else
inline constexpr int kMostVectors = 4;
#endif

/// The windows of kQueries queries, or fewer, of a tile.
struct QueryWindows {
  enum class Kind {
    band,    ///< every window one place after that of the query before
    shared,  ///< the same window
    any,
  };
  Kind kind;
  int queries;
  std::int64_t first_slot[kQueries];  ///< slots before it are empty
  std::int64_t offset[kQueries];      ///< places from the tile's first query's slot 0

  QueryWindows(const backward::Tile& tile, int first, std::int64_t slots) {
    queries = tile.count - first < kQueries ? tile.count - first : kQueries;
    bool is_band = queries == kQueries && slots >= 3, is_shared = queries == kQueries;
    for (int q = 0; q < queries; ++q) {
      first_slot[q] = tile.empty_slots[first + q];
      offset[q] = tile.offset[first + q];
      is_band &= first_slot[q] == 0 && offset[q] == offset[0] + q;
      is_shared &= first_slot[q] == 0 && offset[q] == offset[0];
    }
    kind = is_band ? Kind::band : is_shared ? Kind::shared : Kind::any;
  }
};

/// Rows of keys of one row of queries: `planes` runs of `rows`.
struct ValueRows {
  const float* probabilities;  ///< [plane][row][slot][lane], of the first query; lanes are queries
  std::int64_t plane_scores, row_scores;
  const float* values;  ///< [plane][row][place][channel], slot 0 of the tile's first query, first channel
  std::int64_t plane_values, row_values;
  std::int64_t place_values;  ///< floats from one place to the next
  std::int64_t planes, rows;
  std::int64_t slots;
  const float* factor;  ///< of every query
  float* sums;          ///< [query][channel]
  std::int64_t pitch;   ///< of `sums`
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
      x[v] = hn::LoadU(d, value + v * kLanes);
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
  HWY_INLINE void add_run(const ValueRows& r, const QueryWindows& windows, const float* values,
                          const float* probabilities, std::int64_t begin, std::int64_t end) {
    for (std::int64_t s = begin; s < end; ++s) {
      add<kQuery, kQuery + 1, 0>(values + (windows.offset[kQuery] + s) * r.place_values, probabilities + s * kLanes);
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

/// A band of keys, without waste. kSlots is the number of slots, or 0 for any number from 3 up.
template <int kVectors, int kSlots>
void add_values_of_band(const ValueRows& r, std::int64_t offset) {
  ValueSums<kVectors> sums;
  const std::int64_t step = r.place_values;
  for_each_value_row(r, [&](const float* probabilities, const float* values) NATTEN_INLINE_LAMBDA {
    values += offset * step;
    sums.template add<0, 1, -1>(values, probabilities);
    sums.template add<0, 2, -1>(values + step, probabilities + kLanes);
    sums.template add<0, 3, -1>(values + 2 * step, probabilities + 2 * kLanes);
    values += 3 * step;
    probabilities += 3 * kLanes;
    if constexpr (kSlots > 0) {
      NATTEN_UNROLL
      for (int s = 3; s < kSlots; ++s, values += step, probabilities += kLanes) {
        sums.template add<0, 4, -1>(values, probabilities);
      }
    } else {
      for (std::int64_t s = 3; s < r.slots; ++s, values += step, probabilities += kLanes) {
        sums.template add<0, 4, -1>(values, probabilities);
      }
    }
    sums.template add<1, 4, -1>(values, probabilities);
    sums.template add<2, 4, -1>(values + step, probabilities + kLanes);
    sums.template add<3, 4, -1>(values + 2 * step, probabilities + 2 * kLanes);
  });
  sums.store(r, kQueries);
}

template <int kVectors>
void add_values_of_shared_window(const ValueRows& r, std::int64_t offset) {
  ValueSums<kVectors> sums;
  for_each_value_row(r, [&](const float* probabilities, const float* values) NATTEN_INLINE_LAMBDA {
    values += offset * r.place_values;
    for (std::int64_t s = 0; s < r.slots; ++s, values += r.place_values, probabilities += kLanes) {
      sums.template add<0, kQueries, 0>(values, probabilities);
    }
  });
  sums.store(r, kQueries);
}

template <int kVectors>
void add_values_of_windows(const ValueRows& r, const QueryWindows& w) {
  ValueSums<kVectors> sums;
  std::int64_t common = 0;
  for (int q = 0; q < w.queries; ++q) common = common < w.first_slot[q] ? w.first_slot[q] : common;
  for_each_value_row(r, [&](const float* probabilities, const float* values) NATTEN_INLINE_LAMBDA {
    sums.template add_run<0>(r, w, values, probabilities, w.first_slot[0], common);
    if (w.queries > 1) sums.template add_run<1>(r, w, values, probabilities, w.first_slot[1], common);
    if (w.queries > 2) sums.template add_run<2>(r, w, values, probabilities, w.first_slot[2], common);
    if (w.queries > 3) sums.template add_run<3>(r, w, values, probabilities, w.first_slot[3], common);
    if (w.queries == kQueries) {
      for (std::int64_t s = common; s < r.slots; ++s) {
        const float* value = values + s * r.place_values;
        const float* probability = probabilities + s * kLanes;
        sums.template add<0, 1, 0>(value + w.offset[0] * r.place_values, probability);
        sums.template add<1, 2, 0>(value + w.offset[1] * r.place_values, probability);
        sums.template add<2, 3, 0>(value + w.offset[2] * r.place_values, probability);
        sums.template add<3, 4, 0>(value + w.offset[3] * r.place_values, probability);
      }
    } else {
      sums.template add_run<0>(r, w, values, probabilities, common, r.slots);
      if (w.queries > 1) sums.template add_run<1>(r, w, values, probabilities, common, r.slots);
      if (w.queries > 2) sums.template add_run<2>(r, w, values, probabilities, common, r.slots);
    }
  });
  sums.store(r, w.queries);
}

/// Values of one long row of keys: query q attends keys [begin[q], end[q]), and `probabilities` has a vector for every
/// key. Keys that all of the queries attend serve them together.
template <int kVectors>
void add_values_of_row(const ValueRows& r, int queries, const std::int64_t* begin, const std::int64_t* end) {
  ValueSums<kVectors> sums;
  std::int64_t first = begin[0], last = end[0];
  for (int q = 1; q < queries; ++q) {
    first = begin[q] > first ? begin[q] : first;
    last = end[q] < last ? end[q] : last;
  }
  const auto add_alone = [&]<int kQuery>(std::integral_constant<int, kQuery>) NATTEN_INLINE_LAMBDA {
    if (kQuery >= queries) return;
    const bool has_common = queries == kQueries && first < last;
    const std::int64_t stop = has_common ? first : end[kQuery];
    for (std::int64_t k = begin[kQuery]; k < stop; ++k) {
      sums.template add<kQuery, kQuery + 1, 0>(r.values + k * r.place_values, r.probabilities + k * kLanes);
    }
    for (std::int64_t k = has_common ? last : stop; k < end[kQuery]; ++k) {
      sums.template add<kQuery, kQuery + 1, 0>(r.values + k * r.place_values, r.probabilities + k * kLanes);
    }
  };
  add_alone(std::integral_constant<int, 0>());
  add_alone(std::integral_constant<int, 1>());
  add_alone(std::integral_constant<int, 2>());
  add_alone(std::integral_constant<int, 3>());
  if (queries == kQueries) {
    for (std::int64_t k = first; k < last; ++k) {
      sums.template add<0, kQueries, 0>(r.values + k * r.place_values, r.probabilities + k * kLanes);
    }
  }
  sums.store(r, queries);
}

template <int kVectors>
HWY_INLINE void add_values(const ValueRows& r, const QueryWindows& windows) {
  switch (windows.kind) {
    case QueryWindows::Kind::band:
      switch (r.slots) {
        case 3:
          return add_values_of_band<kVectors, 3>(r, windows.offset[0]);
        case 5:
          return add_values_of_band<kVectors, 5>(r, windows.offset[0]);
        case 7:
          return add_values_of_band<kVectors, 7>(r, windows.offset[0]);
        default:
          return add_values_of_band<kVectors, 0>(r, windows.offset[0]);
      }
    case QueryWindows::Kind::shared:
      return add_values_of_shared_window<kVectors>(r, windows.offset[0]);
    case QueryWindows::Kind::any:
      return add_values_of_windows<kVectors>(r, windows);
  }
}

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_TILE_VALUES_INL_H_
