#include "native/cpu/axis_plan.h"

#include <algorithm>

namespace natten::cpu {

AxisGroup::AxisGroup(const Axis& axis, std::int64_t group)
    : first_token(group), token_step(axis.dilation), places(group_length(axis.length, axis.dilation, group)) {
  queries.reserve((places + axis.stride - 1) / axis.stride + 1);
  for (std::int64_t place = 0; place < places; ++place) {
    if (token(place) % axis.stride != 0) continue;
    const Span keys = window(axis, place, places);
    queries.push_back({token(place) / axis.stride, place, keys, key_in_slot(axis, place, keys.start, std::int64_t{0})});
  }
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
  if (wanted.key_value) {
    part.owned_keys = owned;
    for (std::int64_t key = owned.start; key < owned.end; ++key) {
      part.queries = joined(part.queries, group.attending[key]);
    }
  }
  part.keys = part.owned_keys;
  const Span& windows = whole_windows ? part.queries : part.owned_queries;
  for (std::int64_t query = windows.start; query < windows.end; ++query) {
    part.keys = joined(part.keys, group.queries[query].keys);
  }
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
