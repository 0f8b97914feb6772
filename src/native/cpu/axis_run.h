// Keys of a query and queries of a key along one axis, as arithmetic progressions of token indices.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "definition/problem.h"

namespace natten::cpu {

/// Element t (0 <= t < count) is row `first + t * step` of the keys or of the results; a key stands at `slot + t` of
/// the kernel, and both stand at `bias + t * bias_step` of the position bias. Axes that are not circular.
struct AxisRun {
  std::int64_t first, step, count;
  std::int64_t slot;
  std::int64_t bias, bias_step;
};

/// Query index of row 0 of the results.
inline std::int64_t first_query(const Axis& axis, const AxisSpan& span) {
  return query_index(axis, span.query_start);
}

/// Rows of the keys of the query in row `output` of the results. Slots advance by one.
inline AxisRun keys_of_query(const Axis& axis, const AxisSpan& span, std::int64_t output) {
  const std::int64_t token = (first_query(axis, span) + output) * axis.stride;
  const std::int64_t group = token % axis.dilation;
  const std::int64_t place = token / axis.dilation;
  const Range<std::int64_t> keys = window(axis, place, group_length(axis.length, axis.dilation, group));
  return {keys.start * axis.dilation + group - span.key_start,
          axis.dilation,
          keys.end - keys.start,
          slot_of_key(axis, place, keys.start, keys.start),
          rpb_index(axis, place, keys.start),
          1};
}

/// Queries, as rows of the results, that attend the key in `row`; may be empty. The slot of the key differs from query
/// to query: key_slot().
inline AxisRun queries_of_key(const Axis& axis, const AxisSpan& span, std::int64_t row) {
  const std::int64_t token = span.key_start + row;
  const std::int64_t group = token % axis.dilation;
  const std::int64_t place = token / axis.dilation;
  Range<std::int64_t> queries = attending_queries(axis, place, group_length(axis.length, axis.dilation, group));
  const auto place_from = [&](std::int64_t position) {
    return position <= group ? 0 : (position - group + axis.dilation - 1) / axis.dilation;
  };
  queries.start = std::max(queries.start, place_from(span.query_start));
  queries.end = std::min(queries.end, place_from(span.query_start + span.query_rows));
  // Computed queries of this group are `period` places apart, if there are any.
  const std::int64_t period = axis.stride / std::gcd(axis.stride, axis.dilation);
  std::int64_t first = queries.start;
  while (first < queries.end && (first * axis.dilation + group) % axis.stride != 0) ++first;
  const std::int64_t count = first < queries.end ? (queries.end - first + period - 1) / period : 0;
  return {(first * axis.dilation + group) / axis.stride - first_query(axis, span),
          period * axis.dilation / axis.stride,
          count,
          0,
          rpb_index(axis, first, place),
          -period};
}

/// Slot of the key in `row` in the window of the query in row `output` of the results, which attends it.
inline std::int64_t key_slot(const Axis& axis, const AxisSpan& span, std::int64_t output, std::int64_t row) {
  const AxisRun keys = keys_of_query(axis, span, output);
  return keys.slot + (row - keys.first) / axis.dilation;
}

}  // namespace natten::cpu
