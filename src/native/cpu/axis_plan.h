// How a backward pass is cut: places, tiles of queries along the last axis, parts that tasks own.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "native/cpu/kernels.h"

namespace natten::cpu {

using Span = Range<std::int64_t>;

inline std::int64_t size_of(const Span& span) {
  return span.end - span.start;
}
inline bool contains(const Span& span, std::int64_t value) {
  return span.start <= value && value < span.end;
}

/// Where the rows of a tensor lie that consecutive places, or consecutive queries, of a group stand for: evenly spaced,
/// or on a circular axis whose windows wrap every `period` of them the same ones again.
struct AxisRows {
  std::int64_t row0 = 0, step = 1;     ///< row of the first one; distance of two
  std::int64_t first = 0, period = 0;  ///< number of index 0 among those of a period; 0: not periodic

  std::int64_t number(std::int64_t index) const { return period == 0 ? index : (first + index) % period; }
  std::int64_t row(std::int64_t index) const { return row0 + number(index) * step; }
};

/// One dilation group of an axis, or of the span of one that the arrays hold: an undilated axis of `places`, whose
/// computed queries are listed. Places count from the first key in the arrays on. Where windows of a circular axis
/// wrap, the axis is unrolled: places from the first to the last key of the windows that hold a key of [0, n), some of
/// them the same keys, and the queries of these windows, some of them the same queries.
struct AxisGroup {
  struct Query {
    std::int64_t output;  ///< row of the results
    std::int64_t place;
    Span keys;           ///< places
    std::int64_t slot0;  ///< place that slot 0 stands for; before `keys` when the first slots are empty
  };
  std::int64_t places;
  std::int64_t length;                       ///< places of the whole axis
  std::int64_t origin;                       ///< place of the whole axis that place 0 is, up to turns of a circular one
  Span owned_keys;                           ///< every key once
  Span owned_queries;                        ///< places among which every query is once
  AxisRows key_rows;                         ///< by place
  AxisRows outputs;                          ///< by index in `queries`
  std::int64_t first_query_row, query_step;  ///< row in query of results' row r: first_query_row + r * query_step
  std::vector<Query> queries;
  std::vector<Span> attending;  ///< of every place, the range of `queries` that attend it; perhaps empty

  /// `by_key`: with `attending`, which takes as long as listing the keys.
  AxisGroup(const Axis& axis, const AxisSpan& span, std::int64_t group, bool by_key);
  /// From the first owned query to the last.
  Span places_of_queries() const;
  /// The end of the block of `size` places of the whole axis that `place` lies in, or of the axis: partial sums that
  /// are cut there are those of the same keys whatever part of the axis is computed.
  std::int64_t block_end(std::int64_t place, std::int64_t size) const {
    const std::int64_t turned = (origin + place) % length, at = turned < 0 ? turned + length : turned;
    const std::int64_t end = (at / size + 1) * size;
    return place - at + (end < length ? end : length);
  }
  std::int64_t bytes() const { return queries.capacity() * sizeof(Query) + attending.capacity() * sizeof(Span); }

 private:
  void list_queries(const Axis& axis, const AxisSpan& span, std::int64_t group);
  void unroll();
  void list_attending();
};

/// What one task works on along an axis.
struct AxisPart {
  Span owned_keys;     ///< places whose dk, dv this task writes; empty when these are not wanted
  Span owned_queries;  ///< indices of queries whose dq this task writes; empty when it is not wanted
  Span queries;        ///< indices of all queries it needs: owned ones, and those that attend owned keys
  Span keys;           ///< places of all keys it needs
};

struct Wanted {
  bool query, key_value;
};

/// The part of the places `owned`. With `whole_windows` every needed query brings its whole window along, which lets
/// the last axis work in tiles; on the others a pair of rows is skipped unless one of them is owned.
AxisPart make_part(const AxisGroup& group, const Span& owned, Wanted wanted, bool whole_windows);

/// Queries in one vector, one per lane, whose keys of any one slot lie within one vector of keys.
struct Tile {
  static constexpr int kMaxLanes = 16;
  std::int64_t query;  ///< index of the first, in the group
  int count;
  std::int64_t slot0;                   ///< place of slot 0 of the first query
  int first_slot;                       ///< slots before it are empty for all queries
  bool is_shift;                        ///< lane i reads the key i places on: no permutation needed
  bool is_masked;                       ///< some lanes or slots are empty
  bool one_bias;                        ///< all lanes read the same entry of the position bias
  std::int32_t offset[kMaxLanes];       ///< of slot 0 from the first query's
  std::int32_t empty_slots[kMaxLanes];  ///< slots below are empty; all of them in unused lanes
  std::int32_t bias[kMaxLanes];         ///< entry of slot 0
};

std::vector<Tile> make_tiles(const Axis& axis, const AxisGroup& group, const Span& queries, int lanes);

/// Splits [0, places) into `parts` nearly equal spans.
inline Span part_of(std::int64_t places, std::int64_t parts, std::int64_t part) {
  return {places * part / parts, places * (part + 1) / parts};
}

}  // namespace natten::cpu
