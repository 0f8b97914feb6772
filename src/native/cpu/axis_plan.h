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

/// One dilation group of an axis: an undilated axis of `places`, whose computed queries are listed.
struct AxisGroup {
  struct Query {
    std::int64_t output;  ///< output position
    std::int64_t place;
    Span keys;           ///< places
    std::int64_t slot0;  ///< place that slot 0 stands for; before `keys` when the first slots are empty
  };
  std::int64_t first_token, token_step;  ///< token of place p: first_token + p * token_step
  std::int64_t places;
  std::vector<Query> queries;
  std::vector<Span> attending;  ///< of every place, the range of `queries` that attend it; perhaps empty

  AxisGroup(const Axis& axis, std::int64_t group);
  std::int64_t token(std::int64_t place) const { return first_token + place * token_step; }
  std::int64_t bytes() const { return queries.capacity() * sizeof(Query) + attending.capacity() * sizeof(Span); }
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
