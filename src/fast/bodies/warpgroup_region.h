// What the kernels on Hopper's warpgroup matrix instructions work on (half types, channels in multiples of 8).
// NA_WARPGROUPS consumer warpgroups hold a box of 64 positions each, side by side on NA_SPLIT_AXIS; the region
// that they meet is a flat list of positions whose outermost axis is the split one, and streams past NA_BLOCK at a
// time.
namespace natten {

constexpr int kMaskUnits = 1, kMaskRow = 2;  // NA_MASK (warpgroup_mask.h), if anything has to be masked

/// The region of a tile as a flat list, the split axis outermost.
constexpr int kOuter = NA_SPLIT_AXIS, kMiddle = NA_SPLIT_AXIS == 0 ? 1 : 0, kInner = NA_SPLIT_AXIS == 2 ? 1 : 2;

struct FlatRegion {
  int extent[3];
  int size, columns, plane;
  float per_column, per_plane;
};

NATTEN_FN FlatRegion flat_region_of(const Tile& tile) {
  FlatRegion f;
  NA_UNROLL for (int a = 0; a < 3; ++a) f.extent[a] = tile.region[a].end - tile.region[a].start;
  f.columns = f.extent[kInner];
  f.plane = f.columns * f.extent[kMiddle];
  f.size = f.plane * f.extent[kOuter];
  f.per_column = 1.0f / float(f.columns);
  f.per_plane = 1.0f / float(f.plane);
  return f;
}

/// Coordinates within the region of its n-th position; n < 2^20, where this is exact.
NATTEN_FN void flat_coordinates(int (&to)[3], const FlatRegion& f, int n) {
  to[kOuter] = int((float(n) + 0.5f) * f.per_plane);
  n -= to[kOuter] * f.plane;
  to[kMiddle] = int((float(n) + 0.5f) * f.per_column);
  to[kInner] = n - to[kMiddle] * f.columns;
}

NATTEN_FN int flat_index(const FlatRegion& f, const int (&c)[3]) {
  return c[kOuter] * f.plane + c[kMiddle] * f.columns + c[kInner];
}

NATTEN_FN int warpgroup_extent(int a) {
  return NA_BY_AXIS(NA_BOX, a);
}

constexpr bool kIsCircular = NA_IS_CIRCULAR_0 || NA_IS_CIRCULAR_1 || NA_IS_CIRCULAR_2;

/// Registers: lets the compiler make anew what it has made of the axes, which so need not be kept over a main loop.
NATTEN_FN void forget(Extent& axes) {
  asm volatile("" : "+r"(axes.v[0]), "+r"(axes.v[1]), "+r"(axes.v[2])::"memory");
}
template <class P>
NATTEN_FN void forget(P*&) {  // of spans
  asm volatile("" ::: "memory");
}

/// What the positions of a box meet: what any of them does, by axis, and in flat terms what any does and what all
/// do as far as that is one range.
struct WarpgroupSpan {
  Range<int> any;
  Range<int> all;
  int first[3], last[3];  ///< positions
};

template <bool kQueries>
NATTEN_FN WarpgroupSpan span_of(const Tile& tile, const FlatRegion& f, int box) {
  WarpgroupSpan s;
  Range<int> any[3], all[3];
  bool empty = tile.empty;
  NA_UNROLL for (int a = 0; a < 3; ++a) {
    const int most = positions_in<kQueries>(tile.groups[a]) - 1;
    const int first = tile.origin[a] + (a == NA_SPLIT_AXIS ? box * warpgroup_extent(a) : 0);
    empty = empty || first > most;
    s.first[a] = lesser(first, most);
    s.last[a] = lesser(first + warpgroup_extent(a) - 1, most);
    const Range<int> low = met_by<kQueries>(tile.axes[a], tile.groups[a], s.first[a]);
    const Range<int> high = met_by<kQueries>(tile.axes[a], tile.groups[a], s.last[a]);
    any[a] = Range<int>{low.start - tile.region[a].start, high.end - tile.region[a].start};
    all[a] = Range<int>{high.start - tile.region[a].start, low.end - tile.region[a].start};
    empty = empty || any[a].end <= any[a].start;
  }
  const int from[3] = {any[0].start, any[1].start, any[2].start};
  const int to[3] = {any[0].end - 1, any[1].end - 1, any[2].end - 1};
  s.any = empty ? Range<int>{0, 0} : Range<int>{flat_index(f, from), flat_index(f, to) + 1};
  const bool inner = all[kInner].start <= 0 && all[kInner].end >= f.columns;
  const bool middle = all[kMiddle].start <= 0 && all[kMiddle].end >= f.extent[kMiddle];
  s.all = empty || !inner || !middle ? Range<int>{0, 0}
                                     : Range<int>{all[kOuter].start * f.plane, all[kOuter].end * f.plane};
  return s;
}

/// Ranges of blocks [start, end) of which a box meets some.
NATTEN_FN Range<int> active_blocks(const WarpgroupSpan& s) {
  return s.any.end == 0 ? Range<int>{0, 0} : Range<int>{s.any.start / NA_BLOCK, ceil_div(s.any.end, NA_BLOCK)};
}

/// Blocks that a consumer takes one after the other: of the flat region, or of additional tokens, which come before it.
struct Blocks {
  Range<int> met;     ///< of which its box meets some
  Range<int> all;     ///< positions that all of the box meet
  Range<int> row[2];  ///< what the thread's two positions meet, where a comparison tells
};

#if NA_HAS_EXTRA
template <class P>
NATTEN_FN int extra_count(const Tensor<P>& t) {
  return t.extra_count;
}
template <class P>
NATTEN_FN View<P> extra_or(View<P>, const Tensor<P>& t, const Tile& tile, int head) {
  return extra_view(t, tile, head);
}
#else
template <class P>
NATTEN_FN int extra_count(const Tensor<P>&) {
  return 0;
}
template <class P>
NATTEN_FN View<P> extra_or(View<P> window, const Tensor<P>&, const Tile&, int) {
  return window;
}
#endif

/// One row of what a position meets: of additional tokens where n < 0, else that of `p`.
template <class P>
struct MetRow {
  P data;
  Offset channel;
  NATTEN_FN MetRow(View<P> window, View<P> extra, int n, const int (&p)[3]) {
    const bool is_extra = NA_HAS_EXTRA && n < 0;
    data = is_extra ? extra.data + (-1 - n) * extra.step[2] : window.data + offset_of(window, p);
    channel = is_extra ? extra.channel : window.channel;
  }
  NATTEN_FN float operator[](int c) const { return float(data[c * channel]); }
};

/// Coordinates in its box of the item of a thread that holds `position`.
NATTEN_FN void box_coordinates(int (&to)[3], int position, int item) {
  NA_UNROLL for (int a = 2; a >= 0; --a) {
    const int threads = warpgroup_extent(a) / run_on_axis(a);
    to[a] = position % threads * run_on_axis(a) + (a == NA_RUN_AXIS ? item : 0);
    position /= threads;
  }
}
NATTEN_FN int position_of_thread() {
  return threadIdx.x % 128 / 32 * 8 + hardware_lane() / 4;
}
template <bool kQueries, class Axes>
NATTEN_FN Tile warpgroup_tile(Axes axes, int group, int head, int heads, const int* lengths) {
  Site site = locate<kQueries>(axes, group, head, heads, threadIdx.x);
  if (NA_HAS_LENGTHS) {
    site.lengths = Extent{{lengths[3 * site.batch], lengths[3 * site.batch + 1], lengths[3 * site.batch + 2]}};
  }
  return tile_of<kQueries>(site);
}
NATTEN_FN Blocks blocks_of(const WarpgroupSpan& span, const Tile& tile, const Items& items) {
  Blocks blocks = {active_blocks(span), span.all, {}};
  NA_UNROLL for (int r = 0; r < 2; ++r) {
    blocks.row[r] = Range<int>{items.met[r][kOuter].start - tile.region[kOuter].start,
                               items.met[r][kOuter].end - tile.region[kOuter].start};
  }
  return blocks;
}
NATTEN_FN Blocks blocks_of_extra(int count) {
  const Range<int> all = {0, count};
  return Blocks{{0, ceil_div(count, NA_BLOCK)}, all, {all, all}};
}
/// A consumer's place in a tile.
NATTEN_FN void take_place(Tile& tile, int box) {
  tile.lane = hardware_lane() % 4;
  box_coordinates(tile.coordinate, position_of_thread(), 0);
  tile.coordinate[NA_SPLIT_AXIS] += box * warpgroup_extent(NA_SPLIT_AXIS);
}

}  // namespace natten
