// A threadgroup's tile: a box of stationary positions (computed queries, or keys) of one dilation group, that it holds
// in registers while the positions they meet stream past. The constants of an instance are macros that the host writes
// in front: NA_KERNEL_SIZE_0 ... per axis, NA_EXTENT_0 ... of the tile, NA_RUN neighbouring positions per thread along
// NA_RUN_AXIS, NA_LANES threads that share the channels of a position, NA_VECTOR channels per access.
// Everywhere, kQueries says whether stationary positions are queries or keys.
namespace natten {

typedef long Offset;  // 64 bits, on Metal too

#define NA_BY_AXIS(name, a) ((a) == 0 ? name##_0 : (a) == 1 ? name##_1 : name##_2)

struct Extent {
  int v[3];
};

NATTEN_FN AxisConstants axis_constants(int a, int length) {
  return AxisConstants{
      {length, NA_BY_AXIS(NA_KERNEL_SIZE, a), NA_BY_AXIS(NA_STRIDE, a), NA_BY_AXIS(NA_DILATION, a),
       NA_BY_AXIS(NA_GNA_STRIDE, a), NA_BY_AXIS(NA_IS_CAUSAL, a) != 0, NA_BY_AXIS(NA_IS_CIRCULAR, a) != 0},
      NA_BY_AXIS(NA_CLASSES, a),
      NA_BY_AXIS(NA_STEP, a)};
}

NATTEN_FN int tile_extent(int a) {
  return NA_BY_AXIS(NA_EXTENT, a);
}
NATTEN_FN int run_on_axis(int a) {
  return a == NA_RUN_AXIS ? NA_RUN : 1;
}

/// Rows of the stationary array on an axis.
template <bool kQueries>
NATTEN_FN int array_length(AxisRows rows) {
  return kQueries ? rows.queries : rows.keys;
}
/// From one row of a dilation group to the next.
template <bool kQueries>
NATTEN_FN int groups_on_axis(int a) {
  return kQueries ? NA_BY_AXIS(NA_CLASSES, a) : NA_BY_AXIS(NA_DILATION, a);
}
/// Dilation groups that have stationary positions: of short spans fewer.
template <bool kQueries>
NATTEN_FN int tiled_groups(AxisRows rows, int a) {
  const int groups = groups_on_axis<kQueries>(a);
  return NA_HAS_SPANS ? lesser(groups, array_length<kQueries>(rows)) : groups;
}
template <bool kQueries>
NATTEN_FN int positions_in(AxisGroup g) {
  return kQueries ? g.queries : g.keys;
}
template <bool kQueries>
NATTEN_FN Range<int> met_by(AxisConstants c, AxisGroup g, int position) {
  return kQueries ? keys_of_query(c, g, position) : queries_of_key(c, g, position);
}

/// The axes of a call, and the rows that its arrays have of them.
struct Spans {
  Extent full;  ///< lengths of the axes
  AxisRows rows[3];
};

/// Of arrays that hold whole axes.
NATTEN_FN Spans spans_of(Extent full) {
  Spans spans;
  spans.full = full;
  NA_UNROLL for (int a = 0; a < 3; ++a) spans.rows[a] = whole_rows(axis_constants(a, full.v[a]).axis);
  return spans;
}
/// From an array of the host's (spans.h).
template <class P>
NATTEN_FN Spans spans_of(P from) {
  Spans spans;
  NA_UNROLL for (int a = 0; a < 3; ++a) {
    spans.full.v[a] = from[7 * a];
    spans.rows[a] =
        AxisRows{from[7 * a + 1], from[7 * a + 2], from[7 * a + 3], from[7 * a + 4], from[7 * a + 5], from[7 * a + 6]};
  }
  return spans;
}

/// Where a threadgroup is. Heads are those of the stationary array.
struct Site {
  Spans spans;
  Extent lengths;  ///< of the sample
  int group, tile, batch, head, heads, thread_index;
  int parts;  ///< where tiles are summed up: the threadgroup takes `group`, `group + parts`, ...
};

template <bool kQueries>
NATTEN_FN int tile_count(const NA_THREAD Spans& spans) {
  int tiles = 1;
  NA_UNROLL for (int a = 0; a < 3; ++a) {
    tiles *= tiles_on_axis(array_length<kQueries>(spans.rows[a]), groups_on_axis<kQueries>(a),
                           tiled_groups<kQueries>(spans.rows[a], a), tile_extent(a));
  }
  return tiles;
}

/// `axes` are those of arrays that hold all of them, or what tells spans. `group` counts tiles, then batches.
template <bool kQueries, class Axes>
NATTEN_FN Site locate(Axes axes, int group, int head, int heads, int thread_index) {
  const Spans spans = spans_of(axes);
  const unsigned tiles = tile_count<kQueries>(spans), at = group;  // without signs divisions are shorter
  return Site{spans, spans.full, group, int(at % tiles), int(at / tiles), head, heads, thread_index, 1};
}

struct Tile {
  Site at;
  AxisConstants axes[3];  ///< lengths are the sample's own
  AxisGroup groups[3];
  int origin[3];         ///< first position
  Range<int> region[3];  ///< union of what the positions meet: keys, or queries
  bool empty;            ///< meets nothing: its outputs are 0
  int lane;              ///< which of the NA_LANES that share a position
  int coordinate[3];     ///< of the thread's first position in the tile
#if NA_HAS_EXTRA
  bool is_extra;  ///< the region is that of extra tokens
#endif
};

template <bool kQueries>
NATTEN_FN Tile tile_of(Site site) {
  Tile tile;
  tile.at = site;
  tile.empty = false;
#if NA_HAS_EXTRA
  tile.is_extra = false;
#endif
  const Spans spans = site.spans;
  NA_UNROLL for (int a = 0; a < 3; ++a) {  // lengths that the call does not allow give zeros
    const int least = least_length(axis_constants(a, spans.full.v[a]).axis);
    tile.empty = tile.empty || site.lengths.v[a] < least || site.lengths.v[a] > spans.full.v[a];
  }
  unsigned index = site.tile;
  NA_UNROLL for (int a = 2; a >= 0; --a) {
    const unsigned tiles =
        ceil_div(ceil_div(array_length<kQueries>(spans.rows[a]), groups_on_axis<kQueries>(a)), tile_extent(a));
    const int tile_on_axis = int(index % tiles);
    index /= tiles;
    int row = 0;
    if (groups_on_axis<kQueries>(a) > 1) {
      const unsigned groups = tiled_groups<kQueries>(spans.rows[a], a);
      row = int(index % groups);
      index /= groups;
    }
    const AxisConstants c = axis_constants(a, tile.empty ? spans.full.v[a] : site.lengths.v[a]);
    const AxisRows rows = rows_within(spans.rows[a], c.axis, spans.full.v[a]);
    const AxisGroup group = kQueries ? group_of_queries(c, rows, row) : group_of_keys(c, rows, row);
    tile.axes[a] = c;
    tile.groups[a] = group;
    tile.origin[a] = tile_on_axis * tile_extent(a);
    tile.region[a] = Range<int>{0, 0};
    if (tile.origin[a] < positions_in<kQueries>(group)) {
      const int last = lesser(tile.origin[a] + tile_extent(a), positions_in<kQueries>(group)) - 1;
      tile.region[a] =
          Range<int>{met_by<kQueries>(c, group, tile.origin[a]).start, met_by<kQueries>(c, group, last).end};
    }
  }
  NA_UNROLL for (int a = 0; a < 3; ++a) tile.empty = tile.empty || tile.region[a].end <= tile.region[a].start;
  // Neighbouring threads hold neighbouring positions, so that their rows of threadgroup memory are in distinct banks.
  const unsigned per_simd = 32 / NA_LANES, index_of_thread = site.thread_index;
  tile.lane = int(index_of_thread % 32 / per_simd);
  unsigned position = index_of_thread / 32 * per_simd + index_of_thread % per_simd;
  NA_UNROLL for (int a = 2; a >= 0; --a) {
    const unsigned threads = tile_extent(a) / run_on_axis(a);
    tile.coordinate[a] = int(position % threads) * run_on_axis(a);
    position /= threads;
  }
  return tile;
}

/// Position of an item on an axis of its group, perhaps past the end.
NATTEN_FN int position_of(const NA_THREAD Tile& tile, int item, int a) {
  return tile.origin[a] + tile.coordinate[a] + (a == NA_RUN_AXIS ? item : 0);
}

NATTEN_FN int query_place(const NA_THREAD Tile& tile, int a, int query) {
  return tile.groups[a].first_place + query * tile.axes[a].step;
}
NATTEN_FN int key_place(const NA_THREAD Tile& tile, int a, int key) {
  return tile.groups[a].key_place + key;
}

/// The thread's positions, and for each of them what it meets. A position past the end repeats the last one, so that
/// the main loop need not ask; only its result is not stored.
struct Items {
  int position[NA_RUN][3];
  int place[NA_RUN][3];
  Range<int> met[NA_RUN][3];
};

template <bool kQueries>
NATTEN_FN Items items_of(const NA_THREAD Tile& tile) {
  Items items;
  NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
    NA_UNROLL for (int a = 0; a < 3; ++a) {
      const int position = lesser(position_of(tile, r, a), positions_in<kQueries>(tile.groups[a]) - 1);
      items.position[r][a] = position;
      items.place[r][a] = kQueries ? query_place(tile, a, position) : key_place(tile, a, position);
      items.met[r][a] = met_by<kQueries>(tile.axes[a], tile.groups[a], position);
    }
  }
  return items;
}

/// Whether the position exists in the sample.
template <bool kQueries>
NATTEN_FN bool is_inside(const NA_THREAD Tile& tile, int item) {
  bool inside = !tile.empty;
  NA_UNROLL for (int a = 0; a < 3; ++a) {
    inside = inside && position_of(tile, item, a) < positions_in<kQueries>(tile.groups[a]);
  }
  return inside;
}

/// Row on an axis of the stationary array: of results, or of key.
template <bool kQueries>
NATTEN_FN int index_of(const NA_THREAD Tile& tile, int item, int a) {
  const AxisGroup g = tile.groups[a];
  return (kQueries ? g.first_query : g.first_key) + position_of(tile, item, a) * groups_on_axis<kQueries>(a);
}

/// Whether the position is in the array, perhaps past the end of a shorter sample: then its outputs are 0.
template <bool kQueries>
NATTEN_FN bool is_stored(const NA_THREAD Tile& tile, int item) {
  bool stored = true;
  NA_UNROLL for (int a = 0; a < 3; ++a) {
    stored = stored && index_of<kQueries>(tile, item, a) < array_length<kQueries>(tile.at.spans.rows[a]);
  }
  return stored;
}

/// Row of the position in a dense array [B, axes, heads] of results or of keys.
template <bool kQueries>
NATTEN_FN Offset dense_row(const NA_THREAD Tile& tile, int item) {
  Offset row = tile.at.batch;
  NA_UNROLL for (int a = 0; a < 3; ++a) {
    row = row * array_length<kQueries>(tile.at.spans.rows[a]) + index_of<kQueries>(tile, item, a);
  }
  return row * tile.at.heads + tile.at.head;
}

template <int kCount>
NATTEN_FN void clear(NA_THREAD float (&x)[NA_RUN][kCount]) {
  NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
    NA_UNROLL for (int i = 0; i < kCount; ++i) x[r][i] = 0.0f;
  }
}

/// Sum over the lanes that share a position; every lane gets the same bits.
NATTEN_FN float sum_lanes(float x) {
  NA_UNROLL for (int distance = 32 / NA_LANES; distance < 32; distance *= 2) x += exchange(x, distance);
  return x;
}

}  // namespace natten
