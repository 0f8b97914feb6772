// NA_PRODUCERS threads that bring the region in, NA_BLOCK positions at a time, into the ring of stages.
namespace natten {

/// Rows of a block that a warp of producers brings in at once; swizzles repeat every 8.
constexpr int kProducerWarps = NA_PRODUCERS / 32;
constexpr int kEvenRows = (NA_BLOCK + 8 * kProducerWarps - 1) / (8 * kProducerWarps) * 8;
constexpr int kWarpRows = kEvenRows < 32 ? kEvenRows : 32;

/// An array that producers bring in. Rows are told by their distance from the first in units of 8 elements where all of
/// them can be, for what makes producers slow is latency: few registers, long chains.
template <int kChannels, class P, int kLayoutRows = NA_BLOCK>
struct Source {
  static constexpr int kWidth = padded_channels(kChannels);
  typedef Panels<kWidth, kLayoutRows> Layout;
  static constexpr int kPieces = kWidth / 8;
  static constexpr bool kPadded = kWidth > kChannels;    ///< with a piece of zeros
  static constexpr bool kWholeRows = 32 % kPieces == 0;  ///< a warp copies whole rows at once
  View<P> from;
  int step[3];
  bool fast;  ///< whether copy() takes the distance, and not the position

  NATTEN_FN explicit Source(View<P> view) : from(view) {
    Offset most = 0;
    NA_UNROLL for (int a = 0; a < 3; ++a) {
      step[a] = int(view.step[a] / 8);
      most += (view.step[a] < 0 ? -view.step[a] : view.step[a]) / 8 * view.period[a];
    }
    fast = view.vectors && most < 1 << 30;
    from.data += fast && kWholeRows ? known(hardware_lane() % kPieces) * 8 : 0;
  }
  /// The piece, or one that exists in its place.
  NATTEN_FN static int known(int piece) { return kPadded ? lesser(piece, kPieces - 2) : piece; }
  NATTEN_FN static void copy_known(unsigned to, P from, int piece) {
    if (kPadded) {
      copy_piece(to, from, piece < kPieces - 1);
    } else {
      copy_piece(to, from);
    }
  }
  NATTEN_FN int distance_of(const int (&p)[3]) const { return p[0] * step[0] + p[1] * step[1] + p[2] * step[2]; }

  /// `rows` of a block, kRows or less, by one warp, whose lane l knows where row l of them is, in the first turn.
  template <int kRows = kWarpRows>
  NATTEN_FN void copy(unsigned address, unsigned char* base, int place, int distance, const int (&p)[3], int first_row,
                      int rows) const {
    const int lane = hardware_lane();
    const unsigned stage = address + place;
    if (fast) {
      constexpr int kCopies = (kRows * kPieces + 31) / 32, kKnown = kCopies < 8 ? kCopies : 8;
      constexpr bool kAllRows = NA_BLOCK % kRows == 0 && kRows * kPieces % 32 == 0;  // of the warp, and no others
      const unsigned to = stage + Layout::place(first_row + lane / kPieces, lane % kPieces);
      const auto copy_some = [&](int some) {
        int at[kKnown];  // all of them before the first copy, behind which none would be asked for
        NA_UNROLL for (int i = 0; i < kKnown; ++i) {
          at[i] = __shfl_sync(0xffffffffu, distance, ((some + i) * 32 + lane) / kPieces);
        }
        NA_UNROLL for (int i = 0; i < kKnown; ++i) {
          const int n = (some + i) * 32 + lane, row = n / kPieces, ahead = (some + i) * (32 / kPieces);
          if (some + i >= kCopies || (!kAllRows && row >= rows)) continue;
          if constexpr (kWholeRows) {
            copy_known((to ^ Layout::turn(ahead) * 16) + ahead * Layout::kRowBytes, from.data + 8 * Offset(at[i]),
                       lane % kPieces);
          } else {
            copy_known(stage + Layout::place(first_row + row, n % kPieces),
                       from.data + 8 * (Offset(at[i]) + known(n % kPieces)), n % kPieces);
          }
        }
      };
      if constexpr (kWholeRows) {
        NA_UNROLL for (int some = 0; some < kCopies; some += kKnown) copy_some(some);
      } else {  // each has a place of its own, for all of which there are no registers
        _Pragma("unroll 1") for (int some = 0; some < kCopies; some += kKnown) copy_some(some);
      }
      return;
    }
    const long long offset = p[0] * from.step[0] + p[1] * from.step[1] + p[2] * from.step[2];
    _Pragma("unroll 1") for (int i = 0; i < kPieces; ++i) {
      const int row = (i * 32 + lane) / kPieces, piece = (i * 32 + lane) % kPieces;
      const long long at = __shfl_sync(0xffffffffu, offset, row);
      if (row >= rows) continue;
      const unsigned to = Layout::place(first_row + row, piece);
      const P data = from.data + at + known(piece) * 8 * from.channel;
      if (from.vectors) {
        copy_known(stage + to, data, piece);
      } else {
        NA_A_TYPE* const target = reinterpret_cast<NA_A_TYPE*>(base + place + to);
        const bool exists = !kPadded || piece < kPieces - 1;
        NA_UNROLL for (int e = 0; e < 8; ++e) target[e] = exists ? data[e * from.channel] : NA_A_TYPE(0.0f);
      }
    }
  }
};

/// Numbers of streamed positions: none, or lse and delta of queries, which are dense arrays of the same shape.
struct NoNumbers {
  static constexpr bool kOfKeys = true;
  NATTEN_FN void copy(unsigned, const int (&)[3]) const {}
};
struct QueryNumbers {
  static constexpr bool kOfKeys = false;
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

/// A producer's work on one tile, once the table of penalties is made. On a circular axis the region begins in the
/// first turn, and goes around at most three times; A and B are of the same side, so their rows are the same.
/// Additional tokens have no penalties.
template <bool kExtra, class A, class B, class Numbers>
NATTEN_FN void produce(const Stages& stages, Ring& ring, const Tile& tile, const FlatRegion& f, View<A> a, View<B> b,
                       const Numbers& numbers, int thread) {
  const Source<NA_A_CHANNELS, A> from_a(a);
  const Source<NA_B_CHANNELS, B> from_b(b);
  constexpr int kPassRows = kProducerWarps * kWarpRows, kPasses = (NA_BLOCK + kPassRows - 1) / kPassRows;
  int start[3];
  NA_UNROLL for (int axis = 0; axis < 3; ++axis) {
    start[axis] = tile.region[axis].start;
    if (NA_BY_AXIS(NA_IS_CIRCULAR, axis) && !kExtra) start[axis] = wrapped(start[axis], a.period[axis]);
  }
  for (int first = 0; first < f.size; first += NA_BLOCK) {
    const int stage = ring.stage;
    int distance_b[kPasses];
    NA_UNROLL for (int pass = 0; pass < 2 * kPasses; ++pass) {
      const bool is_a = pass < kPasses;
      const int of_a = is_a ? pass : pass - kPasses;
      const int warp_row = of_a * kPassRows + thread / 32 * kWarpRows;
      const int row = warp_row + thread % 32, n = first + row;
      int c[3], p[3];
      if (is_a || !from_b.fast || NA_NUMBERS > 0) {
        flat_coordinates(c, f, lesser(n, f.size - 1));
        NA_UNROLL for (int axis = 0; axis < 3; ++axis) {
          p[axis] = c[axis] + start[axis];
          if (NA_BY_AXIS(NA_IS_CIRCULAR, axis) && !kExtra) p[axis] = without_turns(p[axis], a.period[axis]);
        }
      }
      const int rows = lesser(kWarpRows, NA_BLOCK - warp_row);
      const bool some = NA_BLOCK % kPassRows == 0 || rows > 0;
      const bool has_row = (kWarpRows == 32 || thread % 32 < rows) && row < NA_BLOCK;
      if (is_a) {
        const int distance = from_a.distance_of(p);
        distance_b[of_a] = from_b.distance_of(p);
        unsigned penalties[NA_WARPGROUPS][8] = {};
        if (NA_MASK == kMaskUnits && !kExtra) load_penalties(penalties, stages.table(), c, n < f.size);
        if (pass == 0) wait_for(stages.empty_a(stage), ring.phase ^ 1);
        if (NA_MASK == kMaskUnits && has_row) {
          NA_UNROLL for (int w = 0; w < NA_WARPGROUPS; ++w) {
            store_penalties(stages.base + Stages::penalties(stage, w), penalties[w], row);
          }
        }
        if (NA_HAS_RPB && !kExtra && has_row) {
          unsigned* const offsets = reinterpret_cast<unsigned*>(stages.base + Stages::offsets(stage));
          offsets[row] = unsigned(bias_offset<Numbers::kOfKeys>(c));
        }
        if (some) from_a.copy(stages.address, stages.base, Stages::a(stage), distance, p, warp_row, rows);
        if (pass == kPasses - 1) {
          fill(stages.full_a(stage));
        }
      } else {
        if (pass == kPasses) wait_for(stages.empty_b(stage), ring.phase ^ 1);
        if (some) from_b.copy(stages.address, stages.base, Stages::b(stage), distance_b[of_a], p, warp_row, rows);
        if (has_row) numbers.copy(stages.address + Stages::numbers(stage) + row * 4, p);
      }
    }
    fill(stages.full_b(stage));
    ring.advance();
  }
}

/// The same with the tokens that all of the tile's queries attend besides.
template <class KeyP, class ValueP>
NATTEN_FN void produce_extra(const Stages& stages, Ring& ring, const Tile& tile, const Tensor<KeyP>& key,
                             const Tensor<ValueP>& value, int head, int thread) {
#if NA_HAS_EXTRA
  const Tile tokens = extra_tile(tile, key.extra_count);
  produce<true>(stages, ring, tokens, flat_region_of(tokens), extra_view(key, tile, head),
                extra_view(value, tile, head), NoNumbers{}, thread);
#endif
}

}  // namespace natten
