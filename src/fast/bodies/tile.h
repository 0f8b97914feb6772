// A threadgroup's tile: a box of stationary positions (computed queries, or keys) of one dilation group, that it holds
// in registers while the positions they meet stream past. The constants of an instance are macros that the host writes
// in front: NA_KERNEL_SIZE_0 ... per axis, NA_EXTENT_0 ... of the tile, NA_RUN neighbouring positions per thread along
// NA_RUN_AXIS, NA_LANES threads that share the channels of a position, NA_VECTOR channels per access.
namespace natten {

typedef long Offset;  // 64 bits, on Metal too

#define NA_BY_AXIS(name, a) ((a) == 0 ? name##_0 : (a) == 1 ? name##_1 : name##_2)

struct Extent {
  int v[3];
};

NATTEN_FN Extent extent(int v0, int v1, int v2) {
  Extent e;
  e.v[0] = v0;
  e.v[1] = v1;
  e.v[2] = v2;
  return e;
}

NATTEN_FN AxisConstants axis_constants(int a, int length) {
  AxisConstants c;
  c.axis.length = length;
  c.axis.kernel_size = NA_BY_AXIS(NA_KERNEL_SIZE, a);
  c.axis.stride = NA_BY_AXIS(NA_STRIDE, a);
  c.axis.dilation = NA_BY_AXIS(NA_DILATION, a);
  c.axis.gna_stride = NA_BY_AXIS(NA_GNA_STRIDE, a);
  c.axis.is_causal = NA_BY_AXIS(NA_IS_CAUSAL, a);
  c.classes = NA_BY_AXIS(NA_CLASSES, a);
  c.step = NA_BY_AXIS(NA_STEP, a);
  return c;
}

NATTEN_FN int tile_extent(int a) {
  return NA_BY_AXIS(NA_EXTENT, a);
}
NATTEN_FN int run_on_axis(int a) {
  return a == NA_RUN_AXIS ? NA_RUN : 1;
}

/// Where a threadgroup is. Heads are those of the stationary array.
struct Site {
  Extent full;     ///< lengths of the axes
  Extent lengths;  ///< of the sample
  int group, tile, batch, head, heads, thread_index;
};

/// `group` counts tiles, then batches. Stationary positions are queries (kQueries) or keys.
template <bool kQueries>
NATTEN_FN Site locate(Extent full, int group, int head, int heads, int thread_index) {
  int tiles = 1;
  NA_UNROLL for (int a = 0; a < 3; ++a) {
    const AxisConstants c = axis_constants(a, full.v[a]);
    tiles *= kQueries ? tiles_on_axis(output_length(c.axis.length, c.axis.stride), c.classes, tile_extent(a))
                      : tiles_on_axis(c.axis.length, c.axis.dilation, tile_extent(a));
  }
  Site site;
  site.full = site.lengths = full;
  site.group = group;
  site.tile = group % tiles;
  site.batch = group / tiles;
  site.head = head;
  site.heads = heads;
  site.thread_index = thread_index;
  return site;
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
};

/// Lengths that the call allows; the others give zeros.
NATTEN_FN bool is_legal(Extent full, Extent lengths) {
  bool legal = true;
  NA_UNROLL for (int a = 0; a < 3; ++a) {
    const BasicAxis<int> axis = axis_constants(a, full.v[a]).axis;
    legal = legal && lengths.v[a] >= axis.kernel_size * axis.dilation && lengths.v[a] <= full.v[a];
  }
  return legal;
}

template <bool kQueries>
NATTEN_FN Range<int> met_by(AxisConstants c, AxisGroup g, int position) {
  return kQueries ? keys_of_query(c, g, position) : queries_of_key(c, g, position);
}

template <bool kQueries>
NATTEN_FN Tile tile_of(Site site) {
  Tile tile;
  tile.at = site;
  tile.empty = !is_legal(site.full, site.lengths);
  int index = site.tile;
  NA_UNROLL for (int a = 2; a >= 0; --a) {
    AxisConstants c = axis_constants(a, site.full.v[a]);
    const int extent = tile_extent(a);
    const int classes = kQueries ? c.classes : c.axis.dilation;
    const int count = kQueries ? output_length(c.axis.length, c.axis.stride) : c.axis.length;
    const int tiles = ceil_div(ceil_div(count, classes), extent);
    const int on_axis = index % (classes * tiles);
    index /= classes * tiles;
    if (!tile.empty) c.axis.length = site.lengths.v[a];
    const AxisGroup group = kQueries ? group_of_queries(c, on_axis / tiles) : group_of_tokens(c, on_axis / tiles);
    const int positions = kQueries ? group.queries : group.places;
    tile.axes[a] = c;
    tile.groups[a] = group;
    tile.origin[a] = on_axis % tiles * extent;
    tile.region[a].start = 0;
    tile.region[a].end = 0;
    if (tile.origin[a] < positions) {
      const int last = lesser(tile.origin[a] + extent, positions) - 1;
      tile.region[a].start = met_by<kQueries>(c, group, tile.origin[a]).start;
      tile.region[a].end = met_by<kQueries>(c, group, last).end;
    }
  }
  NA_UNROLL for (int a = 0; a < 3; ++a) tile.empty = tile.empty || tile.region[a].end <= tile.region[a].start;
  // Neighbouring threads hold neighbouring positions, so that their rows of threadgroup memory are in distinct banks.
  const int per_simd = 32 / NA_LANES;
  tile.lane = site.thread_index % 32 / per_simd;
  int position = site.thread_index / 32 * per_simd + site.thread_index % per_simd;
  NA_UNROLL for (int a = 2; a >= 0; --a) {
    const int threads = tile_extent(a) / run_on_axis(a);
    tile.coordinate[a] = position % threads * run_on_axis(a);
    position /= threads;
  }
  return tile;
}

NATTEN_FN int coordinate_of(const NA_THREAD Tile& tile, int item, int a) {
  return tile.coordinate[a] + (a == NA_RUN_AXIS ? item : 0);
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
      const AxisGroup g = tile.groups[a];
      const int last = (kQueries ? g.queries : g.places) - 1;
      const int position = lesser(tile.origin[a] + coordinate_of(tile, r, a), last);
      items.position[r][a] = position;
      items.place[r][a] = kQueries ? g.first_place + position * tile.axes[a].step : position;
      items.met[r][a] = met_by<kQueries>(tile.axes[a], g, position);
    }
  }
  return items;
}

/// Whether the position exists in the sample.
template <bool kQueries>
NATTEN_FN bool is_inside(const NA_THREAD Tile& tile, int item) {
  bool inside = !tile.empty;
  NA_UNROLL for (int a = 0; a < 3; ++a) {
    const AxisGroup g = tile.groups[a];
    inside = inside && tile.origin[a] + coordinate_of(tile, item, a) < (kQueries ? g.queries : g.places);
  }
  return inside;
}

/// Index of the position on an axis of the stationary array: query index, or token.
template <bool kQueries>
NATTEN_FN int index_of(const NA_THREAD Tile& tile, int item, int a) {
  const int position = tile.origin[a] + coordinate_of(tile, item, a);
  const AxisGroup g = tile.groups[a];
  return kQueries ? g.first_query + position * tile.axes[a].classes : g.group + position * tile.axes[a].axis.dilation;
}

/// Row of the position in a dense array [B, axes, heads]: O0, O1, O2 of queries, L0, L1, L2 of keys.
template <bool kQueries>
NATTEN_FN Offset dense_row(const NA_THREAD Tile& tile, int item) {
  Offset row = tile.at.batch;
  NA_UNROLL for (int a = 0; a < 3; ++a) {
    const int length = tile.at.full.v[a];
    row =
        row * (kQueries ? output_length(length, tile.axes[a].axis.stride) : length) + index_of<kQueries>(tile, item, a);
  }
  return row * tile.at.heads + tile.at.head;
}

/// Whether the position is in the array, perhaps past the end of a shorter sample: then its outputs are 0.
template <bool kQueries>
NATTEN_FN bool is_stored(const NA_THREAD Tile& tile, int item) {
  bool stored = true;
  NA_UNROLL for (int a = 0; a < 3; ++a) {
    const int length = tile.at.full.v[a];
    stored = stored &&
             index_of<kQueries>(tile, item, a) < (kQueries ? output_length(length, tile.axes[a].axis.stride) : length);
  }
  return stored;
}

template <int kCount>
NATTEN_FN void clear(NA_THREAD float (&x)[NA_RUN][kCount]) {
  NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
    NA_UNROLL for (int i = 0; i < kCount; ++i) x[r][i] = 0.0f;
  }
}

/// Results past the end of a sample become 0, whatever was computed for them.
template <int kCount>
NATTEN_FN void finish(NA_THREAD float (&x)[kCount], bool inside, float factor) {
  NA_UNROLL for (int i = 0; i < kCount; ++i) x[i] = inside ? factor * x[i] : 0.0f;
}

/// Sum over the lanes that share a position; every lane gets the same bits.
NATTEN_FN float sum_lanes(float x) {
  NA_UNROLL for (int distance = 32 / NA_LANES; distance < 32; distance *= 2) x += exchange(x, distance);
  return x;
}

}  // namespace natten
