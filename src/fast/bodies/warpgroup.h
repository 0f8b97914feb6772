// What the kernels on Hopper's warpgroup matrix instructions share (sm_90a; half types, channels in multiples of 16).
// NA_WARPGROUPS consumer warpgroups hold 64 positions each, side by side on NA_SPLIT_AXIS; NA_PRODUCERS more threads
// bring the region in, as a flat list of positions whose outermost axis is the split one, NA_BLOCK at a time, into a
// ring of NA_STAGES stages. Accumulators are laid out as those of mma.m16n8k16 are (matrix.h).
namespace natten {

NATTEN_FN int hardware_lane() {
  return threadIdx.x % 32;
}

/// Barriers in shared memory (PTX mbarrier), by address.
NATTEN_FN unsigned shared_address(const void* p) {
  return unsigned(__cvta_generic_to_shared(p));
}
NATTEN_FN void start_barrier(unsigned barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
NATTEN_FN void arrive(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// Arrives once all copies that the thread has begun are done.
NATTEN_FN void arrive_after_copies(unsigned barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
NATTEN_FN void wait_for(unsigned barrier, unsigned phase) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra.uni past;\nbra.uni again;\npast:\n}" ::"r"(barrier),
      "r"(phase)
      : "memory");
}
/// Orders shared memory that threads wrote before what matrix units read of it.
NATTEN_FN void publish_to_units() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
NATTEN_FN void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
NATTEN_FN void arrive_at_named(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

NATTEN_FN void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
NATTEN_FN void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
NATTEN_FN void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
/// From producers to consumers, where they are a warpgroup.
NATTEN_FN void hand_registers_on() {
#if NA_PRODUCER_REGISTERS
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(NA_PRODUCER_REGISTERS));
#endif
}
NATTEN_FN void take_registers() {
#if NA_PRODUCER_REGISTERS
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(NA_CONSUMER_REGISTERS));
#endif
}
/// Keeps what computes x, which is not negative, before the waits that follow: assemblers move arithmetic across a wait
/// for products, which puts it after them instead of beside them, but not a store.
NATTEN_FN void hold_back(float x, unsigned address) {
  asm volatile("{.reg .pred p; setp.lt.f32 p, %0, 0f00000000; @p st.shared.f32 [%1], %0;}" ::"f"(x), "r"(address)
               : "memory");
}
template <int kBlocks>
NATTEN_FN void hold_back(const float (&x)[kBlocks][4], unsigned address) {
  int signs = 0;
  NA_UNROLL for (int j = 0; j < kBlocks; ++j) {
    NA_UNROLL for (int e = 0; e < 4; ++e) signs |= __float_as_int(x[j][e]);
  }
  asm volatile("{.reg .pred p; setp.lt.s32 p, %0, 0; @p st.shared.b32 [%1], %0;}" ::"r"(signs), "r"(address)
               : "memory");
}
/// Keeps the compiler from touching accumulators while products are under way.
template <int kBlocks>
NATTEN_FN void pin(float (&c)[kBlocks][4]) {
  NA_UNROLL for (int j = 0; j < kBlocks; ++j) {
    NA_UNROLL for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(c[j][e])::"memory");
  }
}

// Shared memory of a stage: rows of kPanel channels side by side in panels, 16-byte pieces swizzled by row such that
// both directions of reading are free of bank conflicts. A descriptor names it to the matrix units.
template <int kChannels>
struct Panels {
  static constexpr int kWidth = kChannels % 64 == 0 ? 64 : kChannels % 32 == 0 ? 32 : 16;
  static constexpr int kRowBytes = kWidth * 2;
  static constexpr int kPieces = kWidth / 8;  ///< of 16 bytes in a row of a panel
  static constexpr int kPanelBytes = NA_BLOCK * kRowBytes;
  static constexpr int kBytes = NA_BLOCK * kChannels * 2;
  static constexpr unsigned long long kSwizzle = kWidth == 64 ? 1 : kWidth == 32 ? 2 : 3;

  NATTEN_FN static int turn(int row) { return row / (8 / kPieces) % kPieces; }
  NATTEN_FN static unsigned place(int row, int piece) {
    return unsigned(piece / kPieces * kPanelBytes + row * kRowBytes + (piece % kPieces ^ turn(row)) * 16);
  }
  NATTEN_FN static unsigned long long descriptor(unsigned address, unsigned leading) {
    return (unsigned long long)(address >> 4 & 0x3fff) | (unsigned long long)(leading >> 4) << 16 |
           (unsigned long long)(8 * kRowBytes >> 4) << 32 | kSwizzle << 62;
  }
  // Of the first 16 channels or rows; what is added for others: a chain of one addition, for uniform registers are
  // slow.
  /// Rows as columns of the right operand.
  NATTEN_FN static unsigned long long across(unsigned stage) { return descriptor(stage, 16); }
  NATTEN_FN static constexpr int across_step(int step) {
    return (step * 16 / kWidth * kPanelBytes + step * 16 % kWidth * 2) >> 4;
  }
  /// Rows as rows of it.
  NATTEN_FN static unsigned long long along(unsigned stage) { return descriptor(stage, kPanelBytes); }
  NATTEN_FN static constexpr int along_step(int step) { return step * 16 * kRowBytes >> 4; }
};

/// Penalties of a block for one warpgroup: 16 channels a row, in two planes of 16 bytes a row.
constexpr int kPenaltyBytes = NA_BLOCK * 32;
NATTEN_FN unsigned long long penalty_descriptor(unsigned address) {
  return (unsigned long long)(address >> 4 & 0x3fff) | (unsigned long long)(NA_BLOCK * 16 >> 4) << 16 |
         (unsigned long long)(128 >> 4) << 32;
}

/// Rows of a block that a warp of producers brings in at once; swizzles repeat every 8.
constexpr int kProducerWarps = NA_PRODUCERS / 32;
constexpr int kEvenRows = (NA_BLOCK + 8 * kProducerWarps - 1) / (8 * kProducerWarps) * 8;
constexpr int kWarpRows = kEvenRows < 32 ? kEvenRows : 32;

constexpr int kMaskUnits = 1, kMaskRow = 2;  // NA_MASK, if anything has to be masked

/// Of logits, to powers of two; below it the penalties of pairs that do not meet are not penalties.
constexpr float kLeastFactor = 1e-6f;

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
  return NA_BY_AXIS(NA_WARPGROUP_EXTENT, a);
}

/// What the positions of a warpgroup meet: what any of them does, by axis, and in flat terms what any does and what all
/// do as far as that is one range.
struct WarpgroupSpan {
  Range<int> any;
  Range<int> all;
  int first[3], last[3];  ///< positions
};

template <bool kQueries>
NATTEN_FN WarpgroupSpan span_of(const Tile& tile, const FlatRegion& f, int warpgroup) {
  WarpgroupSpan s;
  Range<int> any[3], all[3];
  bool empty = tile.empty;
  NA_UNROLL for (int a = 0; a < 3; ++a) {
    const int most = positions_in<kQueries>(tile.groups[a]) - 1;
    const int first = tile.origin[a] + (a == NA_SPLIT_AXIS ? warpgroup * warpgroup_extent(a) : 0);
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

/// Ranges of blocks [start, end) of which a warpgroup meets some.
NATTEN_FN Range<int> active_blocks(const WarpgroupSpan& s) {
  return s.any.end == 0 ? Range<int>{0, 0} : Range<int>{s.any.start / NA_BLOCK, ceil_div(s.any.end, NA_BLOCK)};
}

/// Coordinates in the warpgroup's box of the item of a thread that holds `position`.
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
/// What the thread's two positions meet of a region that is one row.
NATTEN_FN void rows_of(Range<int> (&row)[2], const Tile& tile, const Items& items) {
  NA_UNROLL for (int r = 0; r < 2; ++r) {
    row[r] = Range<int>{items.met[r][kOuter].start - tile.region[kOuter].start,
                        items.met[r][kOuter].end - tile.region[kOuter].start};
  }
}
/// A consumer's tile.
NATTEN_FN void take_place(Tile& tile, int warpgroup) {
  tile.lane = hardware_lane() % 4;
  box_coordinates(tile.coordinate, position_of_thread(), 0);
  tile.coordinate[NA_SPLIT_AXIS] += warpgroup * warpgroup_extent(NA_SPLIT_AXIS);
}

// The mask as a product: a position has a one in the channel of its own coordinate on each axis, a streamed position a
// penalty in the channels of the coordinates by which it is not met. So the matrix units add a penalty to the logits of
// pairs that do not meet, and exactly 0 to the others.
#define NA_MASK_CHANNELS(a) NA_BY_AXIS(NA_MASK_CHANNELS, a)
NATTEN_FN int first_mask_channel(int a) {
  return a == 0 ? 0 : a == 1 ? NA_MASK_CHANNELS_0 : NA_MASK_CHANNELS_0 + NA_MASK_CHANNELS_1;
}

/// Words of the penalty table of an axis: one pair of channels of one coordinate each, on the split axis by warpgroup.
NATTEN_FN constexpr int table_words(int a) {
  return (a == NA_SPLIT_AXIS ? NA_WARPGROUPS : 1) * NA_BY_AXIS(NA_REACH, a) * (NA_MASK_CHANNELS(a) / 2);
}
NATTEN_FN constexpr int table_start(int a) {
  return a == 0 ? 0 : a == 1 ? table_words(0) : table_words(0) + table_words(1);
}
constexpr int kTableWords = table_words(0) + table_words(1) + table_words(2);

template <bool kQueries>
NATTEN_FN void fill_penalty_table(unsigned* table, const Tile& tile, const FlatRegion& f, int thread) {
  NA_UNROLL for (int a = 0; a < 3; ++a) {
    constexpr int kPairs[3] = {NA_MASK_CHANNELS_0 / 2, NA_MASK_CHANNELS_1 / 2, NA_MASK_CHANNELS_2 / 2};
    if (kPairs[a] == 0) continue;
    const int pairs = kPairs[a] > 0 ? kPairs[a] : 1;
    const int groups = a == NA_SPLIT_AXIS ? NA_WARPGROUPS : 1;
    const int reach = NA_BY_AXIS(NA_REACH, a);
    for (int i = thread; i < groups * reach * pairs; i += NA_PRODUCERS) {
      const int pair = i % pairs, c = i / pairs % reach, group = i / pairs / reach;
      unsigned word = 0;
      NA_UNROLL for (int e = 0; e < 2; ++e) {
        const int at = lesser(2 * pair + e, warpgroup_extent(a) - 1);
        const int position =
            lesser(tile.origin[a] + group * warpgroup_extent(a) + at, positions_in<kQueries>(tile.groups[a]) - 1);
        const Range<int> met = met_by<kQueries>(tile.axes[a], tile.groups[a], position);
        const int key = c + tile.region[a].start;
        if (key < met.start || key >= met.end) word |= unsigned(NA_PENALTY) << 16 * e;
      }
      table[table_start(a) + i] = word;
    }
  }
}

/// Penalties of a position of the region for a warpgroup.
NATTEN_FN void store_penalties(unsigned char* to, const unsigned* table, const int (&c)[3], bool exists, int warpgroup,
                               int row) {
  unsigned words[8];
  NA_UNROLL for (int i = 0; i < 8; ++i) words[i] = 0;
  NA_UNROLL for (int a = 0; a < 3; ++a) {
    const int pairs = NA_MASK_CHANNELS(a) / 2;
    const unsigned* const from =
        table + table_start(a) + ((a == NA_SPLIT_AXIS ? warpgroup * NA_BY_AXIS(NA_REACH, a) : 0) + c[a]) * pairs;
    NA_UNROLL for (int i = 0; i < pairs; ++i) {
      words[first_mask_channel(a) / 2 + i] = exists ? from[i] : unsigned(NA_PENALTY) * 0x10001u;
    }
  }
  *reinterpret_cast<uint4*>(to + row * 16) = make_uint4(words[0], words[1], words[2], words[3]);
  *reinterpret_cast<uint4*>(to + NA_BLOCK * 16 + row * 16) = make_uint4(words[4], words[5], words[6], words[7]);
}

/// The thread's two rows of ones, negative where the scale is: then the penalties must be positive.
NATTEN_FN void load_ones(unsigned (&to)[4], bool negative) {
  const int lane = hardware_lane() % 4;
  int coordinate[2][3];
  NA_UNROLL for (int r = 0; r < 2; ++r) box_coordinates(coordinate[r], position_of_thread(), r);
  NA_UNROLL for (int h = 0; h < 2; ++h) {
    NA_UNROLL for (int r = 0; r < 2; ++r) {
      unsigned word = 0;
      NA_UNROLL for (int e = 0; e < 2; ++e) {
        const int channel = 8 * h + 2 * lane + e;
        bool one = false;
        NA_UNROLL for (int a = 0; a < 3; ++a) {
          one = one || (NA_MASK_CHANNELS(a) > 0 && channel == first_mask_channel(a) + coordinate[r][a]);
        }
        if (one) word |= unsigned(NA_ONE) << 16 * e;
      }
      to[2 * h + r] = negative ? word ^ 0x80008000u : word;
    }
  }
  NA_UNROLL for (int h = 0; h < 4; ++h) asm volatile("" : "+r"(to[h]));  // now, not among products
}

/// Place in the ring of stages.
struct Ring {
  int stage;
  unsigned phase;
  NATTEN_FN void advance() {
    if (++stage == NA_STAGES) {
      stage = 0;
      phase ^= 1;
    }
  }
};

/// Everything in shared memory: stages, held rows where they are not in registers, penalties, numbers of streamed
/// positions (two planes), the table of penalties, barriers.
struct Stages {
  static constexpr int kA = Panels<NA_A_CHANNELS>::kBytes, kB = Panels<NA_B_CHANNELS>::kBytes;
  static constexpr int kHeld = NA_HOLD_SHARED ? kA + kB : 0;  ///< of a warpgroup, whose positions are a block
  static constexpr int kPenalties = NA_MASK == kMaskUnits ? NA_WARPGROUPS * kPenaltyBytes : 0;
  static constexpr int kNumbers = NA_NUMBERS * NA_BLOCK * 4;
  static constexpr int kTable = NA_MASK == kMaskUnits ? (kTableWords * 4 + 7) / 8 * 8 : 0;
  static constexpr int kPenaltiesAt = NA_STAGES * (kA + kB) + NA_WARPGROUPS * kHeld;
  static constexpr int kNumbersAt = kPenaltiesAt + NA_STAGES * kPenalties;
  static constexpr int kTableAt = kNumbersAt + NA_STAGES * kNumbers;
  unsigned char* base;
  unsigned address;

  NATTEN_FN static int a(int stage) { return stage * kA; }
  NATTEN_FN static int b(int stage) { return NA_STAGES * kA + stage * kB; }
  NATTEN_FN static int held(int warpgroup) { return NA_STAGES * (kA + kB) + warpgroup * kHeld; }
  NATTEN_FN static int penalties(int stage, int warpgroup) {
    return kPenaltiesAt + stage * kPenalties + warpgroup * kPenaltyBytes;
  }
  NATTEN_FN static int numbers(int stage) { return kNumbersAt + stage * kNumbers; }
  NATTEN_FN unsigned* table() const { return reinterpret_cast<unsigned*>(base + kTableAt); }
  NATTEN_FN unsigned barrier(int which, int stage) const {
    return address + kTableAt + kTable + (which * NA_STAGES + stage) * 8;
  }
  NATTEN_FN unsigned full_a(int stage) const { return barrier(0, stage); }
  NATTEN_FN unsigned full_b(int stage) const { return barrier(1, stage); }
  NATTEN_FN unsigned empty_a(int stage) const { return barrier(2, stage); }
  NATTEN_FN unsigned empty_b(int stage) const { return barrier(3, stage); }
};

NATTEN_FN Stages stages_at(unsigned char* memory) {
  const unsigned address = shared_address(memory), up = (1024 - address % 1024) % 1024;
  return Stages{memory + up, address + up};
}

/// Called by all threads, before a __syncthreads().
NATTEN_FN void start_stages(const Stages& stages) {
  if (threadIdx.x == 0) {
    for (int s = 0; s < NA_STAGES; ++s) {
      start_barrier(stages.full_a(s), 2 * NA_PRODUCERS);
      start_barrier(stages.full_b(s), 2 * NA_PRODUCERS);
      start_barrier(stages.empty_a(s), 4 * NA_WARPGROUPS);
      start_barrier(stages.empty_b(s), 4 * NA_WARPGROUPS);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
}

template <class P>
NATTEN_FN void copy_piece(unsigned to, P from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

/// An array that producers bring in. Rows are told by their distance from the first in units of 8 elements where all of
/// them can be, for what makes producers slow is latency: few registers, long chains.
template <int kChannels, class P>
struct Source {
  typedef Panels<kChannels> Layout;
  static constexpr int kPieces = kChannels / 8;
  static constexpr bool kWholeRows = 32 % kPieces == 0;
  View<P> from;
  int step[3];
  bool fast;

  NATTEN_FN Source(View<P> view, const Tile& tile) : from(view) {
    Offset most = 0;
    NA_UNROLL for (int a = 0; a < 3; ++a) {
      step[a] = int(view.step[a] / 8);
      most += (view.step[a] < 0 ? -view.step[a] : view.step[a]) / 8 * tile.groups[a].places;
    }
    fast = view.vectors && most < 1 << 30;
    from.data += fast && kWholeRows ? hardware_lane() % kPieces * 8 : 0;
  }
  NATTEN_FN int distance_of(const int (&p)[3]) const { return p[0] * step[0] + p[1] * step[1] + p[2] * step[2]; }

  /// `rows` of a block, kRows or less, by one warp, whose lane l knows where row l of them is.
  template <int kRows = kWarpRows>
  NATTEN_FN void copy(unsigned address, unsigned char* base, int place, int distance, const int (&p)[3], int first_row,
                      int rows) const {
    const int lane = hardware_lane();
    const unsigned stage = address + place;
    if (fast && kWholeRows) {
      constexpr int kAtOnce = kWholeRows ? 32 / kPieces : 1;
      const unsigned to = stage + Layout::place(first_row + lane / kPieces, lane % kPieces);
      NA_UNROLL for (int i = 0; i < kRows; i += kAtOnce) {
        const int at = __shfl_sync(0xffffffffu, distance, i + lane / kPieces);
        if (NA_BLOCK % kRows == 0 || i + lane / kPieces < rows) {
          copy_piece((to ^ Layout::turn(i) * 16) + i * Layout::kRowBytes, from.data + 8 * Offset(at));
        }
      }
      return;
    }
    const long long offset = offset_of(from, p);
    _Pragma("unroll 1") for (int i = 0; i < kPieces; ++i) {
      const int row = (i * 32 + lane) / kPieces, piece = (i * 32 + lane) % kPieces;
      const long long at = __shfl_sync(0xffffffffu, offset, row);
      if (row >= rows) continue;
      const unsigned to = Layout::place(first_row + row, piece);
      const P data = from.data + at + piece * 8 * from.channel;
      if (from.vectors) {
        copy_piece(stage + to, data);
      } else {
        NA_A_TYPE* const target = reinterpret_cast<NA_A_TYPE*>(base + place + to);
        NA_UNROLL for (int e = 0; e < 8; ++e) target[e] = data[e * from.channel];
      }
    }
  }
};

/// Numbers of streamed positions: none, or lse and delta of queries, which are dense arrays of the same shape.
struct NoNumbers {
  NATTEN_FN void copy(unsigned, const int (&)[3]) const {}
};
struct QueryNumbers {
  const float* lse;
  const float* delta;
  int step[3];
  template <class LseP, class DeltaP>
  NATTEN_FN QueryNumbers(View<LseP> lses, View<DeltaP> deltas) : lse(lses.data), delta(deltas.data) {
    NA_UNROLL for (int a = 0; a < 3; ++a) step[a] = int(deltas.step[a]);
  }
  NATTEN_FN void copy(unsigned to, const int (&p)[3]) const {
    const int at = p[0] * step[0] + p[1] * step[1] + p[2] * step[2];
    copy_number(to, lse + at);
    copy_number(to + NA_BLOCK * 4, delta + at);
  }
  NATTEN_FN static void copy_number(unsigned to, const float* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
  }
};

template <bool kQueries>
NATTEN_FN void make_penalty_table(const Stages& stages, const Tile& tile, const FlatRegion& f, int thread) {
  if (NA_MASK != kMaskUnits) return;
  const auto meet = [] {
    if (NA_PRODUCERS > 32)
      named_barrier(8, NA_PRODUCERS);
    else
      __syncwarp();
  };
  meet();
  fill_penalty_table<kQueries>(stages.table(), tile, f, thread);
  meet();
}

/// A producer's work on one tile, once the table of penalties is made.
template <class A, class B, class Numbers>
NATTEN_FN void produce(const Stages& stages, Ring& ring, const Tile& tile, const FlatRegion& f, View<A> a, View<B> b,
                       const Numbers& numbers, int thread) {
  const Source<NA_A_CHANNELS, A> from_a(a, tile);
  const Source<NA_B_CHANNELS, B> from_b(b, tile);
  constexpr int kPassRows = kProducerWarps * kWarpRows, kPasses = (NA_BLOCK + kPassRows - 1) / kPassRows;
  for (int first = 0; first < f.size; first += NA_BLOCK) {
    const int stage = ring.stage;
    NA_UNROLL for (int pass = 0; pass < 2 * kPasses; ++pass) {
      const bool is_a = pass < kPasses;
      const int warp_row = (is_a ? pass : pass - kPasses) * kPassRows + thread / 32 * kWarpRows;
      const int row = warp_row + thread % 32, n = first + row;
      int c[3], p[3];
      flat_coordinates(c, f, lesser(n, f.size - 1));
      NA_UNROLL for (int axis = 0; axis < 3; ++axis) p[axis] = c[axis] + tile.region[axis].start;
      const int rows = lesser(kWarpRows, NA_BLOCK - warp_row);
      const bool some = NA_BLOCK % kPassRows == 0 || rows > 0;
      const bool has_row = (kWarpRows == 32 || thread % 32 < rows) && row < NA_BLOCK;
      if (is_a) {
        const int distance = from_a.distance_of(p);
        if (pass == 0) wait_for(stages.empty_a(stage), ring.phase ^ 1);
        if (some) from_a.copy(stages.address, stages.base, Stages::a(stage), distance, p, warp_row, rows);
        if (NA_MASK == kMaskUnits && has_row) {
          NA_UNROLL for (int w = 0; w < NA_WARPGROUPS; ++w) {
            store_penalties(stages.base + Stages::penalties(stage, w), stages.table(), c, n < f.size, w, row);
          }
        }
        if (pass == kPasses - 1) {
          arrive_after_copies(stages.full_a(stage));
          arrive(stages.full_a(stage));
        }
      } else {
        const int distance = from_b.distance_of(p);
        if (pass == kPasses) wait_for(stages.empty_b(stage), ring.phase ^ 1);
        if (some) from_b.copy(stages.address, stages.base, Stages::b(stage), distance, p, warp_row, rows);
        if (has_row) numbers.copy(stages.address + Stages::numbers(stage) + row * 4, p);
      }
    }
    arrive_after_copies(stages.full_b(stage));
    arrive(stages.full_b(stage));
    ring.advance();
  }
}

/// A consumer's waits: until a stage is full, and its word that the warp is done with it.
NATTEN_FN void wait_until_full(unsigned barrier, unsigned phase) {
  wait_for(barrier, phase);
  publish_to_units();  // what copies of other threads wrote
}
NATTEN_FN void release(unsigned barrier) {
  __syncwarp();
  if (hardware_lane() == 0) arrive(barrier);
}
NATTEN_FN void skip_blocks(const Stages& stages, Ring& ring, int count) {
  for (int i = 0; i < count; ++i) {
    wait_for(stages.full_a(ring.stage), ring.phase);
    release(stages.empty_a(ring.stage));
    wait_for(stages.full_b(ring.stage), ring.phase);
    release(stages.empty_b(ring.stage));
    ring.advance();
  }
}

/// Where the region is one row, a comparison masks.
NATTEN_FN void mask_row(float (&logits)[NA_BLOCK / 8][4], int first, const Range<int> (&row)[2]) {
  NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
    NA_UNROLL for (int e = 0; e < 4; ++e) {
      const int n = first + 8 * i + hardware_lane() % 4 * 2 + e % 2;
      if (n < row[e / 2].start || n >= row[e / 2].end) logits[i][e] = -NA_INFINITY;
    }
  }
}

NATTEN_FN float half_of(unsigned pair, int e) {
  const unsigned short bits = (unsigned short)(e == 0 ? pair & 0xffff : pair >> 16);
  NA_A_TYPE x;
  *reinterpret_cast<unsigned short*>(&x) = bits;
  return float(x);
}

/// A 64xblock product's values as the left operand of the next.
NATTEN_FN void pack(unsigned (&to)[NA_BLOCK / 16][4], const float (&from)[NA_BLOCK / 8][4]) {
  NA_UNROLL for (int i = 0; i < NA_BLOCK / 16; ++i) {
    NA_UNROLL for (int h = 0; h < 4; ++h) {
      to[i][h] = rounded_pair<NA_A_TYPE>(from[2 * i + h / 2][h % 2 * 2], from[2 * i + h / 2][h % 2 * 2 + 1]);
    }
  }
}

NATTEN_FN void swap_words(unsigned& low, unsigned& high, int lane, int distance) {
  const bool upper = (lane & distance) != 0;
  const unsigned got = __shfl_xor_sync(0xffffffffu, upper ? low : high, distance);
  (upper ? low : high) = got;
}

/// Row r of the thread's sums, times `factor`, to a row of a dense array; 0 where it is not `inside`. Called by all of
/// the warp.
template <int kBlocks, class T>
NATTEN_FN void store_sums(T* to, const float (&from)[kBlocks][4], int r, float factor, bool stored, bool inside) {
  const int lane = hardware_lane() % 4;
  NA_UNROLL for (int g = 0; g < kBlocks; g += 4) {
    unsigned w[4];
    NA_UNROLL for (int j = 0; j < 4; ++j) {
      const int block = g + j < kBlocks ? g + j : 0;
      w[j] = inside ? rounded_pair<T>(from[block][2 * r] * factor, from[block][2 * r + 1] * factor) : 0u;
    }
    // Transposed among the four lanes of a row, which so get 16 bytes each.
    swap_words(w[0], w[1], lane, 1);
    swap_words(w[2], w[3], lane, 1);
    swap_words(w[0], w[2], lane, 2);
    swap_words(w[1], w[3], lane, 2);
    if (stored && g + lane < kBlocks) {
      *reinterpret_cast<uint4*>(to + 8 * (g + lane)) = make_uint4(w[0], w[1], w[2], w[3]);
    }
  }
}

}  // namespace natten
