// The part of an axis that the arrays of a call hold, and which keys its queries need. Host only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "definition/window.h"

namespace natten {

using Axis = BasicAxis<std::int64_t>;

/// Row r of query is token query_start + r of the axis, row r of key and value token key_start + r. On a circular axis
/// that is a token modulo the length, and key_start may be negative.
struct AxisSpan {
  std::int64_t query_start = 0;
  std::int64_t query_rows = 1;
  std::int64_t key_start = 0;
  std::int64_t key_rows = 1;

  bool operator==(const AxisSpan&) const = default;
};

/// All of an axis.
inline AxisSpan whole(const Axis& axis) {
  return {0, axis.length, 0, axis.length};
}

/// Index of the first computed query at or after `token`; the query with index i is token i * stride.
inline std::int64_t query_index(const Axis& axis, std::int64_t token) {
  return output_length(token, axis.stride);
}

/// Computed queries of a span: as many rows as its results have.
inline std::int64_t query_count(const Axis& axis, const AxisSpan& span) {
  return query_index(axis, span.query_start + span.query_rows) - query_index(axis, span.query_start);
}

/// Least and one past the last token of the windows of the span's computed queries, unwrapped on a circular axis. Empty
/// where none is computed. The key rows of the span don't matter; queries past the axis's length don't count.
inline Range<std::int64_t> needed_keys(const Axis& axis, const AxisSpan& span) {
  const std::int64_t first = query_index(axis, std::min(span.query_start, axis.length));
  const std::int64_t end = query_index(axis, std::min(span.query_start + span.query_rows, axis.length));
  Range<std::int64_t> needed{std::numeric_limits<std::int64_t>::max(), std::numeric_limits<std::int64_t>::min()};
  const auto include = [&](std::int64_t query) {
    const std::int64_t group = query % axis.dilation;
    const Range<std::int64_t> keys =
        window(axis, query / axis.dilation, group_length(axis.length, axis.dilation, group));
    needed.start = std::min(needed.start, keys.start * axis.dilation + group);
    needed.end = std::max(needed.end, (keys.end - 1) * axis.dilation + group + 1);
  };
  // Windows of a group start and end in the order of its queries, and every group that has a computed query has one
  // among any `dilation` of them in a row.
  const std::int64_t groups = std::min(end - first, axis.dilation);
  for (std::int64_t i = 0; i < groups; ++i) {
    include((first + i) * axis.stride);
    include((end - 1 - i) * axis.stride);
  }
  return groups > 0 ? needed : Range<std::int64_t>{0, 0};
}

}  // namespace natten
