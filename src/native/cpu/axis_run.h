// Keys of a query and queries of a key along one axis, as arithmetic progressions of token indices.
#pragma once

#include <cstdint>
#include <numeric>

#include "definition/problem.h"

namespace natten::cpu {

/// Element t (0 <= t < count) is token (or output position) `first + t * step`; a key stands at `slot + t` of the
/// kernel, and both stand at `bias + t * bias_step` of the position bias.
struct AxisRun {
  std::int64_t first, step, count;
  std::int64_t slot;
  std::int64_t bias, bias_step;
};

/// Keys, as tokens, of the query at output position `output`. Slots advance by one.
inline AxisRun keys_of_query(const Axis& axis, std::int64_t output) {
  const std::int64_t token = output * axis.stride;
  const std::int64_t group = token % axis.dilation;
  const std::int64_t place = token / axis.dilation;
  const Range<std::int64_t> keys = window(axis, place, group_length(axis.length, axis.dilation, group));
  return {keys.start * axis.dilation + group,
          axis.dilation,
          keys.end - keys.start,
          slot_of_key(axis, place, keys.start, keys.start),
          rpb_index(axis, place, keys.start),
          1};
}

/// Queries, as output positions, that attend the key at `token`; may be empty when the axis has a query stride. The
/// slot of the key differs from query to query: key_slot().
inline AxisRun queries_of_key(const Axis& axis, std::int64_t token) {
  const std::int64_t group = token % axis.dilation;
  const std::int64_t place = token / axis.dilation;
  const Range<std::int64_t> queries = attending_queries(axis, place, group_length(axis.length, axis.dilation, group));
  // Computed queries of this group are `period` places apart, if there are any.
  const std::int64_t period = axis.stride / std::gcd(axis.stride, axis.dilation);
  std::int64_t first = queries.start;
  while (first < queries.end && (first * axis.dilation + group) % axis.stride != 0) ++first;
  const std::int64_t count = first < queries.end ? (queries.end - first + period - 1) / period : 0;
  return {(first * axis.dilation + group) / axis.stride,
          period * axis.dilation / axis.stride,
          count,
          0,
          rpb_index(axis, first, place),
          -period};
}

/// Slot of the key at `token` in the window of the query at output position `output`, which attends it.
inline std::int64_t key_slot(const Axis& axis, std::int64_t output, std::int64_t token) {
  const AxisRun keys = keys_of_query(axis, output);
  return keys.slot + (token - keys.first) / axis.dilation;
}

}  // namespace natten::cpu
