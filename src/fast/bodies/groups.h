// Positions of an axis by dilation group. Inside a group tokens have places (window.h) and there is no dilation; the
// computed queries of a group are evenly spaced places. The host counts tiles with these functions too.
#pragma once

namespace natten {

/// Constants of an axis. gcd is that of stride and dilation: `classes` = dilation / gcd groups hold computed queries,
/// and those of one class are the query indices c, c + classes, ..., `step` = stride / gcd places apart.
struct AxisConstants {
  BasicAxis<int> axis;
  int classes;
  int step;
};

struct AxisGroup {
  int group;        ///< its tokens are group + place * dilation
  int places;       ///< how many there are
  int first_query;  ///< its computed queries have the indices first_query + m * classes
  int first_place;  ///< and the places first_place + m * step
  int queries;      ///< how many there are, perhaps 0
};

NATTEN_FN int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

/// The group that holds query index `query_class`, 0 <= query_class < classes.
NATTEN_FN AxisGroup group_of_queries(AxisConstants c, int query_class) {
  const int group = query_class * c.axis.stride % c.axis.dilation;
  return AxisGroup{group, group_length(c.axis.length, c.axis.dilation, group), query_class,
                   query_class * c.axis.stride / c.axis.dilation,
                   ceil_div(output_length(c.axis.length, c.axis.stride) - query_class, c.classes)};
}

/// The group of token `group`, 0 <= group < dilation.
NATTEN_FN AxisGroup group_of_tokens(AxisConstants c, int group) {
  for (int query_class = 0; query_class < c.classes; ++query_class) {
    if (query_class * c.axis.stride % c.axis.dilation == group) return group_of_queries(c, query_class);
  }
  return AxisGroup{group, group_length(c.axis.length, c.axis.dilation, group), 0, 0, 0};
}

/// Places of the keys that the m-th query of a group attends.
NATTEN_FN Range<int> keys_of_query(AxisConstants c, AxisGroup g, int m) {
  return window(c.axis, g.first_place + m * c.step, g.places);
}

/// The queries m of a group that attend the key at `place`. May be empty.
NATTEN_FN Range<int> queries_of_key(AxisConstants c, AxisGroup g, int place) {
  const Range<int> places = attending_queries(c.axis, place, g.places);
  const int start = ceil_div(greater(places.start - g.first_place, 0), c.step);
  const int end = ceil_div(greater(places.end - g.first_place, 0), c.step);
  return Range<int>{lesser(start, g.queries), lesser(end, g.queries)};
}

/// Tiles that cover `count` positions of which every `classes`-th belongs together, for all classes.
NATTEN_FN int tiles_on_axis(int count, int classes, int tile) {
  return classes * ceil_div(ceil_div(count, classes), tile);
}

}  // namespace natten
