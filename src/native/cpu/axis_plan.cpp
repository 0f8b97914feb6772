#include "native/cpu/axis_plan.h"

#include <algorithm>

namespace natten::cpu {

namespace {

std::int64_t floored(std::int64_t a, std::int64_t b) {
  return a / b - (a % b < 0 ? 1 : 0);
}

/// The first place of a group whose token is not before `token`.
std::int64_t place_from(const Axis& axis, std::int64_t group, std::int64_t token) {
  return floored(token - group + axis.dilation - 1, axis.dilation);
}

AxisGroup::Query moved(AxisGroup::Query query, std::int64_t distance) {
  query.place += distance;
  query.keys = {query.keys.start + distance, query.keys.end + distance};
  query.slot0 += distance;
  return query;
}

}  // namespace

AxisGroup::AxisGroup(const Axis& axis, const AxisSpan& span, std::int64_t group, bool by_key)
    : length(group_length(axis.length, axis.dilation, group)) {
  list_queries(axis, span, group);
  const std::int64_t first = place_from(axis, group, span.key_start);
  const std::int64_t end = place_from(axis, group, span.key_start + span.key_rows);
  key_rows = {first * axis.dilation + group - span.key_start, axis.dilation};
  places = std::max<std::int64_t>(end - first, 0);
  origin = first;
  owned_keys = owned_queries = {0, places};
  const bool wraps =
      axis.is_circular && !queries.empty() && (queries.front().keys.start < first || queries.back().keys.end > end);
  if (wraps) {
    // Keys of [0, n), whose places begin anywhere among the rows.
    key_rows.period = length;
    key_rows.first = (length - first % length) % length;
    unroll();
  } else {
    for (Query& query : queries) query = moved(query, -first);
  }
  if (by_key) list_attending();
}

/// In places of the whole axis.
void AxisGroup::list_queries(const Axis& axis, const AxisSpan& span, std::int64_t group) {
  const std::int64_t first_output = query_index(axis, span.query_start);
  first_query_row = first_output * axis.stride - span.query_start;
  query_step = axis.stride;
  const std::int64_t begin = place_from(axis, group, span.query_start);
  const std::int64_t end = place_from(axis, group, span.query_start + span.query_rows);
  if (begin < end) queries.reserve((end - begin + axis.stride - 1) / axis.stride + 1);
  for (std::int64_t place = begin; place < end; ++place) {
    const std::int64_t token = place * axis.dilation + group;
    if (token % axis.stride != 0) continue;
    const Span keys = window(axis, place, length);
    queries.push_back(
        {token / axis.stride - first_output, place, keys, key_in_slot(axis, place, keys.start, std::int64_t{0})});
  }
  outputs.row0 = queries.empty() ? 0 : queries[0].output;
  outputs.step = queries.size() > 1 ? queries[1].output - queries[0].output : 1;
}

void AxisGroup::unroll() {
  const std::vector<Query> once = std::move(queries);
  queries.clear();
  std::int64_t first = once.front().keys.start, end = once.back().keys.end;
  outputs.period = static_cast<std::int64_t>(once.size());
  queries.reserve(once.size() + 2 * size_of(once.front().keys));
  // A window begins less than an axis before its query, and ends less than one after it. Neither end moves back from
  // one query to the next.
  for (std::int64_t turn = -2; turn <= 2; ++turn) {
    const std::int64_t distance = turn * length;
    const auto begin = std::partition_point(once.begin(), once.end(),
                                            [&](const Query& query) { return query.keys.end + distance <= 0; });
    const auto past = std::partition_point(begin, once.end(),
                                           [&](const Query& query) { return query.keys.start + distance < length; });
    if (queries.empty()) outputs.first = begin - once.begin();
    for (auto query = begin; query != past; ++query) {
      queries.push_back(moved(*query, distance));
      first = std::min(first, queries.back().keys.start);
      end = std::max(end, queries.back().keys.end);
    }
  }
  first = std::min<std::int64_t>(first, 0);
  places = std::max(end, length) - first;
  origin = first;
  owned_keys = owned_queries = {-first, length - first};
  key_rows.first = (key_rows.first + first % length + length) % length;
  for (Query& query : queries) query = moved(query, -first);
}

Span AxisGroup::places_of_queries() const {
  Span span = owned_queries;
  if (key_rows.period != 0 || queries.empty()) return span;
  return {std::max(span.start, queries.front().place), std::min(span.end, queries.back().place + 1)};
}

void AxisGroup::list_attending() {
  // Neither end of the window ever moves back from one query to the next.
  const std::int64_t count = static_cast<std::int64_t>(queries.size());
  attending.reserve(places);
  Span span{0, 0};
  for (std::int64_t place = 0; place < places; ++place) {
    while (span.start < count && queries[span.start].keys.end <= place) ++span.start;
    while (span.end < count && queries[span.end].keys.start <= place) ++span.end;
    attending.push_back({span.start, std::max(span.start, span.end)});
  }
}

namespace {

Span joined(const Span& a, const Span& b) {
  if (size_of(a) <= 0) return b;
  if (size_of(b) <= 0) return a;
  return {std::min(a.start, b.start), std::max(a.end, b.end)};
}

}  // namespace

AxisPart make_part(const AxisGroup& group, const Span& owned, Wanted wanted, bool whole_windows) {
  AxisPart part{};
  const auto place_before = [](const AxisGroup::Query& query, std::int64_t place) { return query.place < place; };
  const auto index_of = [&](std::int64_t place) {
    return std::lower_bound(group.queries.begin(), group.queries.end(), place, place_before) - group.queries.begin();
  };
  if (wanted.query) part.owned_queries = {index_of(owned.start), index_of(owned.end)};
  part.queries = part.owned_queries;
  // Neither end of what is joined moves back from one place or query to the next, so that the first and the last that
  // are not empty are enough.
  const auto join_ends = [](Span& to, const Span& range, const auto& span_of) {
    std::int64_t first = range.start, last = range.end - 1;
    while (first <= last && size_of(span_of(first)) <= 0) ++first;
    while (last > first && size_of(span_of(last)) <= 0) --last;
    if (first <= last) to = joined(to, {span_of(first).start, span_of(last).end});
  };
  if (wanted.key_value) {
    part.owned_keys = owned;
    join_ends(part.queries, owned, [&](std::int64_t key) -> const Span& { return group.attending[key]; });
  }
  part.keys = part.owned_keys;
  const Span& windows = whole_windows ? part.queries : part.owned_queries;
  join_ends(part.keys, windows, [&](std::int64_t query) -> const Span& { return group.queries[query].keys; });
  return part;
}

std::vector<Tile> make_tiles(const Axis& axis, const AxisGroup& group, const Span& queries, int lanes) {
  std::vector<Tile> tiles;
  const int kernel_size = static_cast<int>(axis.kernel_size);
  for (std::int64_t next = queries.start; next < queries.end;) {
    const AxisGroup::Query& first = group.queries[next];
    Tile tile{next, 0, first.slot0, kernel_size, true, false, true, {}, {}, {}};
    for (; tile.count < lanes && next < queries.end; ++tile.count, ++next) {
      const AxisGroup::Query& query = group.queries[next];
      const std::int64_t offset = query.slot0 - first.slot0;
      if (offset >= lanes) break;
      const int lane = tile.count;
      tile.offset[lane] = static_cast<std::int32_t>(offset);
      tile.empty_slots[lane] =
          static_cast<std::int32_t>(slot_of_key(axis, query.place, query.keys.start, query.keys.start));
      tile.bias[lane] = static_cast<std::int32_t>(rpb_index(axis, query.place, query.slot0));
      tile.first_slot = std::min(tile.first_slot, tile.empty_slots[lane]);
      tile.is_shift &= offset == lane;
      tile.is_masked |= tile.empty_slots[lane] > 0;
      tile.one_bias &= tile.bias[lane] == tile.bias[0];
    }
    tile.is_masked |= tile.count < lanes;
    for (int lane = tile.count; lane < lanes; ++lane) {
      tile.offset[lane] = 0;
      tile.empty_slots[lane] = kernel_size;
      tile.bias[lane] = tile.bias[0];
    }
    tiles.push_back(tile);
  }
  return tiles;
}

}  // namespace natten::cpu
