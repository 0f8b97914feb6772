// Which keys a span of queries needs.
#include "definition/span.h"

#include <algorithm>

#include "api/entry.h"

namespace natten {

namespace {

int rank_of(const Neighborhood& n, std::initializer_list<const PerAxis<std::int64_t>*> others) {
  int rank = 1;
  const auto count = [&](const auto& values) {
    if (!values.is_scalar()) rank = std::max(rank, static_cast<int>(values.size()));
  };
  for (const auto* values : {&n.kernel_size, &n.stride, &n.dilation, &n.gna_stride}) count(*values);
  for (const auto* values : {&n.is_causal, &n.is_circular}) count(*values);
  for (const auto* values : others) count(*values);
  return std::min(rank, kAxes);
}

}  // namespace

KeySpan key_span(const Neighborhood& neighborhood, const PerAxis<std::int64_t>& query_start,
                 const PerAxis<std::int64_t>& rows, const PerAxis<std::int64_t>& shape) {
  const Caller caller{"key_span", rank_of(neighborhood, {&query_start, &rows, &shape})};
  validate_neighborhood(caller, neighborhood);
  validate_count(caller, "query_start", query_start);
  validate_lengths(caller, "rows", rows);
  validate_lengths(caller, "shape", shape);
  KeySpan result;
  for (int axis = 0; axis < caller.rank; ++axis) {
    const Axis a = validate_axis(caller, axis, shape[axis], neighborhood);
    validate_positions(caller, "queries", axis, query_start[axis], rows[axis], a.length);
    const Range<std::int64_t> needed = needed_keys(a, {query_start[axis], rows[axis], 0, 0});
    const bool is_all = needed.end - needed.start >= a.length;  // of a circular axis they may be more, around it
    result.key_start.push_back(is_all ? 0 : needed.start);
    result.rows.push_back(is_all ? a.length : needed.end - needed.start);
  }
  return result;
}

}  // namespace natten
