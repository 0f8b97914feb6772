// Sums of values weighted by probabilities, for a few queries of a tile at a time: lanes are channels. Included once
// per SIMD target.
#if defined(NATTEN_NATIVE_CPU_TILE_VALUES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_TILE_VALUES_INL_H_
#undef NATTEN_NATIVE_CPU_TILE_VALUES_INL_H_
#else
#define NATTEN_NATIVE_CPU_TILE_VALUES_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "hwy/highway.h"
#include "native/cpu/axis_plan.h"
#include "native/cpu/tile_products-inl.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The sums live in registers only where GCC inlines the loop bodies.
#undef NATTEN_INLINE_LAMBDA
#define NATTEN_INLINE_LAMBDA __attribute__((always_inline))

/// Queries at a time, and vectors of channels: 16 accumulators (8 where there are 16 registers), enough to hide the
/// latency of a multiplication even where a band of keys begins and ends.
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3
inline constexpr int kQueries = kLanes < 4 ? kLanes : 4;
inline constexpr int kMostVectors = 2;
#else
inline constexpr int kQueries = kLanes < 8 ? kLanes : 8;
inline constexpr int kMostVectors = 16 / kQueries;
#endif
/// Queries at a time of windows without a pattern.
inline constexpr int kFewQueries = kQueries < 4 ? kQueries : 4;

/// The windows of a few consecutive queries of a tile, which are summed together.
struct QueryWindows {
  enum class Kind {
    band,    ///< every window one place after that of the query before: kQueries or kFewQueries of them
    shared,  ///< the same window, kQueries or kFewQueries times
    any,     ///< at most kFewQueries
  };
  Kind kind;
  int first;  ///< query of the tile
  int queries;
  std::int64_t first_slot[kQueries];  ///< slots before it are empty
  std::int64_t offset[kQueries];      ///< places from the tile's first query's slot 0

  QueryWindows(const Tile& tile, int first_query, std::int64_t slots) : first(first_query) {
    const int band = run_length(tile, 1), shared = run_length(tile, 0);
    // Bands of these sizes have code of their own, see add_values_of_pattern().
    const bool is_short = slots == 3 || slots == 5;
    if (band >= kFewQueries && (is_short || slots >= kFewQueries - 1)) {
      kind = Kind::band;
      queries = band >= kQueries && (is_short || slots >= kQueries - 1) ? kQueries : kFewQueries;
    } else if (shared >= kFewQueries) {
      kind = Kind::shared;
      queries = shared >= kQueries ? kQueries : kFewQueries;
    } else {
      kind = Kind::any;
      queries = tile.count - first < kFewQueries ? tile.count - first : kFewQueries;
    }
    for (int q = 0; q < queries; ++q) {
      first_slot[q] = tile.empty_slots[first + q];
      offset[q] = tile.offset[first + q];
    }
  }

 private:
  /// Queries from `first` on without empty slots, whose windows are `step` places apart.
  int run_length(const Tile& tile, int step) const {
    int length = 0;
    while (first + length < tile.count && tile.empty_slots[first + length] == 0 &&
           tile.offset[first + length] == tile.offset[first] + step * length) {
      ++length;
    }
    return length;
  }
};

/// Rows of keys of one row of queries: `planes` runs of `rows`.
struct ValueRows {
  const float* probabilities;  ///< [plane][row][slot][lane], of the first query; lanes are queries
  std::int64_t plane_scores, row_scores;
  const float* const* row_values;  ///< of every row of keys, [place][channel]
  std::int64_t value;              ///< slot 0 of the tile's first query, first channel: an offset in every row
  std::int64_t place_values;       ///< floats from one place to the next
  std::int64_t planes, rows;
  std::int64_t slots;
  const float* factor;  ///< of every query
  float* sums;          ///< [query][channel]
  std::int64_t pitch;   ///< of `sums`
};

template <int kCount, int kVectors>
struct ValueSums {
  TileVec sum[kCount][kVectors];

  HWY_INLINE ValueSums() {
    NATTEN_UNROLL
    for (int q = 0; q < kCount; ++q) {
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
    for (int q = 0; q < kCount; ++q) {
      if (q >= queries) break;
      const auto factor = hn::Set(d, r.factor[q]);
      NATTEN_UNROLL
      for (int v = 0; v < kVectors; ++v) hn::Store(hn::Mul(factor, sum[q][v]), d, r.sums + q * r.pitch + v * kLanes);
    }
  }
};

/// Calls visit(std::integral_constant) for 0 .. kCount - 1.
template <int kCount, class Visit>
HWY_INLINE void for_each_constant(Visit&& visit) {
  [&]<int... i>(std::integer_sequence<int, i...>) NATTEN_INLINE_LAMBDA {
    (visit(std::integral_constant<int, i>()), ...);
  }
  (std::make_integer_sequence<int, kCount>());
}

template <class Visit>
HWY_INLINE void for_each_value_row(const ValueRows& r, Visit&& visit) {
  const float* const* values = r.row_values;
  for (std::int64_t plane = 0; plane < r.planes; ++plane) {
    const float* probabilities = r.probabilities + plane * r.plane_scores;
    for (std::int64_t row = 0; row < r.rows; ++row, probabilities += r.row_scores) {
      visit(probabilities, *values++ + r.value);
    }
  }
}

/// A band of keys, without waste. kSlots is the number of slots, or 0 for any number from kCount - 1 up.
template <int kCount, int kVectors, int kSlots>
void add_values_of_band(const ValueRows& r, std::int64_t offset) {
  ValueSums<kCount, kVectors> sums;
  const std::int64_t step = r.place_values;
  for_each_value_row(r, [&](const float* probabilities, const float* values) NATTEN_INLINE_LAMBDA {
    values += offset * step;
    if constexpr (kSlots > 0) {
      for_each_constant<kCount + kSlots - 1>([&]<int kPlace>(std::integral_constant<int, kPlace>) NATTEN_INLINE_LAMBDA {
        constexpr int kBegin = kPlace < kSlots ? 0 : kPlace - kSlots + 1, kEnd = kPlace < kCount ? kPlace + 1 : kCount;
        sums.template add<kBegin, kEnd, -1>(values + kPlace * step, probabilities + kPlace * kLanes);
      });
    } else {
      for_each_constant<kCount - 1>([&]<int kPlace>(std::integral_constant<int, kPlace>) NATTEN_INLINE_LAMBDA {
        sums.template add<0, kPlace + 1, -1>(values + kPlace * step, probabilities + kPlace * kLanes);
      });
      values += (kCount - 1) * step;
      probabilities += (kCount - 1) * kLanes;
      for (std::int64_t s = kCount - 1; s < r.slots; ++s, values += step, probabilities += kLanes) {
        sums.template add<0, kCount, -1>(values, probabilities);
      }
      for_each_constant<kCount - 1>([&]<int kPlace>(std::integral_constant<int, kPlace>) NATTEN_INLINE_LAMBDA {
        sums.template add<kPlace + 1, kCount, -1>(values + kPlace * step, probabilities + kPlace * kLanes);
      });
    }
  });
  sums.store(r, kCount);
}

template <int kCount, int kVectors>
void add_values_of_shared_window(const ValueRows& r, std::int64_t offset) {
  ValueSums<kCount, kVectors> sums;
  for_each_value_row(r, [&](const float* probabilities, const float* values) NATTEN_INLINE_LAMBDA {
    values += offset * r.place_values;
    for (std::int64_t s = 0; s < r.slots; ++s, values += r.place_values, probabilities += kLanes) {
      sums.template add<0, kCount, 0>(values, probabilities);
    }
  });
  sums.store(r, kCount);
}

template <int kVectors>
void add_values_of_windows(const ValueRows& r, const QueryWindows& w) {
  ValueSums<kFewQueries, kVectors> sums;
  std::int64_t common = 0;
  for (int q = 0; q < w.queries; ++q) common = common < w.first_slot[q] ? w.first_slot[q] : common;
  for_each_value_row(r, [&](const float* probabilities, const float* values) NATTEN_INLINE_LAMBDA {
    const auto add_runs = [&](const std::int64_t* begin, std::int64_t end) NATTEN_INLINE_LAMBDA {
      for_each_constant<kFewQueries>([&]<int kQuery>(std::integral_constant<int, kQuery>) NATTEN_INLINE_LAMBDA {
        if (kQuery < w.queries) sums.template add_run<kQuery>(r, w, values, probabilities, begin[kQuery], end);
      });
    };
    add_runs(w.first_slot, common);
    if (w.queries == kFewQueries) {
      for (std::int64_t s = common; s < r.slots; ++s) {
        for_each_constant<kFewQueries>([&]<int kQuery>(std::integral_constant<int, kQuery>) NATTEN_INLINE_LAMBDA {
          sums.template add<kQuery, kQuery + 1, 0>(values + (w.offset[kQuery] + s) * r.place_values,
                                                   probabilities + s * kLanes);
        });
      }
    } else {
      const std::int64_t begin[] = {common, common, common, common};
      add_runs(begin, r.slots);
    }
  });
  sums.store(r, w.queries);
}

/// Values of one long row of keys: query q attends keys [begin[q], end[q]), and `probabilities` has a vector for every
/// key. Keys that all of the queries attend serve them together. A query's keys are added in their order, whichever
/// queries it shares them with.
template <int kVectors>
void add_values_of_row(const ValueRows& r, int queries, const std::int64_t* begin, const std::int64_t* end) {
  ValueSums<kQueries, kVectors> sums;
  std::int64_t first = begin[0], last = end[0];
  for (int q = 1; q < queries; ++q) {
    first = begin[q] > first ? begin[q] : first;
    last = end[q] < last ? end[q] : last;
  }
  const bool has_common = queries == kQueries && first < last;
  const float* values = r.row_values[0] + r.value;
  const auto add_keys_of_one = [&](const std::int64_t* from, const std::int64_t* to) NATTEN_INLINE_LAMBDA {
    for_each_constant<kQueries>([&]<int kQuery>(std::integral_constant<int, kQuery>) NATTEN_INLINE_LAMBDA {
      if (kQuery >= queries) return;
      for (std::int64_t k = from[kQuery]; k < to[kQuery]; ++k) {
        sums.template add<kQuery, kQuery + 1, 0>(values + k * r.place_values, r.probabilities + k * kLanes);
      }
    });
  };
  if (has_common) {
    std::int64_t firsts[kQueries], lasts[kQueries];
    std::fill_n(firsts, kQueries, first);
    std::fill_n(lasts, kQueries, last);
    add_keys_of_one(begin, firsts);
    for (std::int64_t k = first; k < last; ++k) {
      sums.template add<0, kQueries, 0>(values + k * r.place_values, r.probabilities + k * kLanes);
    }
    add_keys_of_one(lasts, end);
  } else {
    add_keys_of_one(begin, end);
  }
  sums.store(r, queries);
}

template <int kCount, int kVectors>
HWY_INLINE void add_values_of_pattern(const ValueRows& r, const QueryWindows& windows) {
  if (windows.kind == QueryWindows::Kind::shared) {
    return add_values_of_shared_window<kCount, kVectors>(r, windows.offset[0]);
  }
  switch (r.slots) {
    case 3:
      return add_values_of_band<kCount, kVectors, 3>(r, windows.offset[0]);
    case 5:
      return add_values_of_band<kCount, kVectors, 5>(r, windows.offset[0]);
    case 7:
      return add_values_of_band<kCount, kVectors, 7>(r, windows.offset[0]);
    default:
      return add_values_of_band<kCount, kVectors, 0>(r, windows.offset[0]);
  }
}

template <int kVectors>
HWY_INLINE void add_values(const ValueRows& r, const QueryWindows& windows) {
  if (windows.kind == QueryWindows::Kind::any) return add_values_of_windows<kVectors>(r, windows);
  if (windows.queries == kQueries) return add_values_of_pattern<kQueries, kVectors>(r, windows);
  add_values_of_pattern<kFewQueries, kVectors>(r, windows);
}

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_TILE_VALUES_INL_H_
