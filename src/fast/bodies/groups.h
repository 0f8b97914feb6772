// Positions of an axis by dilation group. Inside a group tokens have places (window.h) and there is no dilation; the
// computed queries of a group are evenly spaced places. The host counts tiles with these functions too.
#pragma once

namespace natten {

/// Constants of an axis. gcd is that of stride and dilation: `classes` = dilation / gcd groups hold computed queries,
/// and every `classes`-th computed query is in the same group, `step` = stride / gcd places on.
struct AxisConstants {
  BasicAxis<int> axis;
  int classes;
  int step;
};

/// Which part of an axis the rows of a call's arrays are: of query, of key and of results.
struct AxisRows {
  int first_query;  ///< index of the computed query that is row 0 of results
  int queries;      ///< rows of results
  int query_row;    ///< row of query that is the first computed one
  int query_rows;   ///< of query
  int first_key;    ///< token of row 0 of key; on a circular axis perhaps negative
  int keys;         ///< rows of key
};

NATTEN_FN AxisRows whole_rows(BasicAxis<int> axis) {
  return AxisRows{0, output_length(axis.length, axis.stride), 0, axis.length, 0, axis.length};
}

/// Those of them that a sample has, whose axis may be shorter than the call's.
NATTEN_FN AxisRows rows_within(AxisRows rows, BasicAxis<int> sample, int length) {
  if (sample.length >= length) return rows;  // rows of a circular axis may go on past its end
  rows.queries = lesser(rows.queries, greater(output_length(sample.length, sample.stride) - rows.first_query, 0));
  rows.keys = lesser(rows.keys, greater(sample.length - rows.first_key, 0));
  return rows;
}

/// Rows of a dilation group. Those of results are first_query + m * classes, and the places first_place + m * step;
/// those of key are first_key + m * dilation, and the places key_place + m.
struct AxisGroup {
  int places;  ///< of the whole group
  int first_query;
  int first_place;
  int queries;  ///< how many rows of results there are, perhaps 0
  int first_key;
  int key_place;
  int keys;  ///< how many rows of key there are, perhaps 0
};

NATTEN_FN int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

/// Group `group` of the axis, whose first row of results is `first_query`.
NATTEN_FN AxisGroup group_of(AxisConstants c, AxisRows rows, int group, int first_query, int queries) {
  int first_key = group;
  if (rows.first_key != 0) {
    first_key = (group - rows.first_key) % c.axis.dilation;
    if (first_key < 0) first_key += c.axis.dilation;
  }
  return AxisGroup{group_length(c.axis.length, c.axis.dilation, group),
                   first_query,
                   (rows.first_query + first_query) * c.axis.stride / c.axis.dilation,
                   queries,
                   first_key,
                   (rows.first_key + first_key - group) / c.axis.dilation,
                   group_length(rows.keys, c.axis.dilation, first_key)};
}

/// The group of the results' row `row`, 0 <= row < classes.
NATTEN_FN AxisGroup group_of_queries(AxisConstants c, AxisRows rows, int row) {
  const int group = (rows.first_query + row) * c.axis.stride % c.axis.dilation;
  return group_of(c, rows, group, row, ceil_div(rows.queries - row, c.classes));
}

/// The group of key's row `row`, 0 <= row < dilation.
NATTEN_FN AxisGroup group_of_keys(AxisConstants c, AxisRows rows, int row) {
  int group = row;
  if (rows.first_key != 0) {
    group = (rows.first_key + row) % c.axis.dilation;
    if (group < 0) group += c.axis.dilation;
  }
  for (int query = 0; query < c.classes; ++query) {
    if ((rows.first_query + query) * c.axis.stride % c.axis.dilation == group) return group_of_queries(c, rows, query);
  }
  return group_of(c, rows, group, 0, 0);
}

/// Keys m of a group that its m-th query attends. On a circular axis the keys are those modulo `places`.
NATTEN_FN Range<int> keys_of_query(AxisConstants c, AxisGroup g, int m) {
  const Range<int> keys = window(c.axis, g.first_place + m * c.step, g.places);
  return Range<int>{keys.start - g.key_place, keys.end - g.key_place};
}

/// Queries of the group at places before `place`. On a circular axis the group has its queries again in each turn.
NATTEN_FN int queries_before(AxisConstants c, AxisGroup g, int place) {
  constexpr int kTurns = 4;  // more than a place is ever below 0
  const int turns = c.axis.is_circular ? (place + kTurns * g.places) / g.places - kTurns : 0;
  const int count = ceil_div(greater(place - turns * g.places - g.first_place, 0), c.step);
  return turns * g.queries + lesser(count, g.queries);
}

/// The queries m of a group that attend its m-th key. May be empty. On a circular axis the queries are those modulo
/// `queries`.
NATTEN_FN Range<int> queries_of_key(AxisConstants c, AxisGroup g, int m) {
  const Range<int> places = attending_queries(c.axis, g.key_place + m, g.places);
  return Range<int>{queries_before(c, g, places.start), queries_before(c, g, places.end)};
}

/// Tiles that cover `count` positions of which every `classes`-th belongs together, for `groups` of the classes.
NATTEN_FN int tiles_on_axis(int count, int classes, int groups, int tile) {
  return groups * ceil_div(ceil_div(count, classes), tile);
}

}  // namespace natten
