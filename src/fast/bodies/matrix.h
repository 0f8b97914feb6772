// What the kernels on matrix units share, over the fragments of an engine (fragments_cuda.h, fragments_metal.h).
// A simdgroup holds 16 stationary positions: a thread has two neighbours of them, as everywhere, and they are the rows
// `row` and `row` + 8 of its fragments. The region of the tile is taken as one flat list of positions, so rows of it
// that are no multiple of 8 waste nothing, and which position meets which is a test on the streamed one's word, made
// once a chunk. NA_MASK_BITS: the word has a bit for each coordinate of the tile, NA_BITS of an axis from NA_SHIFT on,
// set where the coordinate is one by which it is not met. Else it is packed coordinates: each has NA_BITS of its axis,
// from NA_SHIFT on, and a bit above it, which a subtraction borrows when it gets below zero.
namespace natten {

/// Tile deals positions out by threads: such that the four threads of a row share theirs.
NATTEN_FN Site matrix_site(Site site, Lane lane) {
  site.thread_index = int(unsigned(site.thread_index) / 32) * 32 + lane.pair * 8 + lane.row;
  return site;
}

/// The region of a tile as a flat list.
struct Region {
  int size;
  int columns;
  int plane;
  float per_column;
  float per_plane;
};

NATTEN_FN Region region_of(const NA_THREAD Tile& tile) {
  Region region;
  region.columns = tile.region[2].end - tile.region[2].start;
  region.plane = region.columns * (tile.region[1].end - tile.region[1].start);
  region.size = region.plane * (tile.region[0].end - tile.region[0].start);
  region.per_column = 1.0f / float(region.columns);
  region.per_plane = 1.0f / float(region.plane);
  return region;
}

/// Coordinates within the region of its n-th position. The host sees to it that n < 2^20, where this is exact.
NATTEN_FN void coordinates(NA_THREAD int (&to)[3], const NA_THREAD Region& region, int n) {
  to[0] = int((float(n) + 0.5f) * region.per_plane);
  n -= to[0] * region.plane;
  to[1] = int((float(n) + 0.5f) * region.per_column);
  to[2] = n - to[1] * region.columns;
}

NATTEN_FN unsigned packed(int c0, int c1, int c2) {
  return unsigned(c0) << NA_SHIFT_0 | unsigned(c1) << NA_SHIFT_1 | unsigned(c2);
}

/// The word of a position that none meets.
NATTEN_FN unsigned word_of_nobody() {
  return NA_MASK_BITS ? ~0u : NA_GUARDS | NA_NOWHERE;
}
/// Of one that all meet (sweep_extra).
NATTEN_FN unsigned word_of_extra() {
  return NA_MASK_BITS ? 0u : NA_GUARDS;
}
/// The word of a streamed position of the group, whose coordinates in the region are `c`.
template <bool kQueries>
NATTEN_FN unsigned word_of(const NA_THREAD Tile& tile, const NA_THREAD int (&position)[3],
                           const NA_THREAD int (&c)[3]) {
  if (!NA_MASK_BITS) return NA_GUARDS | packed(c[0], c[1], c[2]);
  unsigned word = 0;
  NA_UNROLL for (int a = 0; a < 3; ++a) {
    const int extent = NA_BY_AXIS(NA_BITS, a);
    if (extent == 0) continue;  // its one coordinate meets the whole region
    const Range<int> met = kQueries ? queries_of_key(tile.axes[a], tile.groups[a], position[a])
                                    : keys_of_query(tile.axes[a], tile.groups[a], position[a]);
    const int end = lesser(greater(met.end - tile.origin[a], 0), extent);
    const int start = lesser(greater(met.start - tile.origin[a], 0), end);
    word |= ((1u << extent) - 1 - ((1u << end) - (1u << start))) << NA_BY_AXIS(NA_SHIFT, a);
  }
  return word;
}

/// What the thread's positions meet: the bits of their coordinates, or packed coordinates; flat ranges of what any
/// position of the warp meets, and of what all do, which is known where the region is one row.
struct Meeting {
  unsigned start[2];
  unsigned last[2];  ///< without NA_MASK_BITS
  Range<int> any;
  Range<int> all;
#if NA_HAS_EXTRA
  bool is_extra;  ///< extra tokens
#endif
};

template <bool kQueries>
NATTEN_FN Meeting meeting_of(const NA_THREAD Tile& tile, const NA_THREAD Items& items, const NA_THREAD Region& region) {
  Meeting m;
  m.any = m.all = Range<int>{region.size, 0};
#if NA_HAS_EXTRA
  m.is_extra = false;
#endif
  const bool exists = any_lane(is_inside<kQueries>(tile, 0) || is_inside<kQueries>(tile, 1));
  NA_UNROLL for (int r = 0; r < 2; ++r) {
    int s[3], l[3];
    bool empty = !exists;  // of a simdgroup whose positions are all past the end
    NA_UNROLL for (int a = 0; a < 3; ++a) {
      s[a] = items.met[r][a].start - tile.region[a].start;
      l[a] = items.met[r][a].end - 1 - tile.region[a].start;
      empty = empty || l[a] < s[a];
    }
    if (NA_MASK_BITS) {
      m.start[r] = 0;
      NA_UNROLL for (int a = 0; a < 3; ++a) {
        if (NA_BY_AXIS(NA_BITS, a) == 0) continue;
        m.start[r] |= 1u << (NA_BY_AXIS(NA_SHIFT, a) + items.position[r][a] - tile.origin[a]);
      }
    } else {
      m.start[r] = empty ? NA_NOWHERE : packed(s[0], s[1], s[2]);
      m.last[r] = (empty ? 0u : packed(l[0], l[1], l[2])) + 2 * NA_GUARDS;
    }
    if (!empty) {
      m.any.start = lesser(m.any.start, s[0] * region.plane + s[1] * region.columns + s[2]);
      m.any.end = greater(m.any.end, l[0] * region.plane + l[1] * region.columns + l[2] + 1);
    }
  }
  m.any.start = least_of_lanes(m.any.start);
  m.any.end = greatest_of_lanes(m.any.end);
  if (NA_MASK_BITS) return m;
  // On no condition: of a reduction that has one, ptxas (CUDA 12.9, 13.0) forgets which predicate that is.
  const Range<int> all = {greatest_of_lanes(int(greater(m.start[0], m.start[1]))),
                          least_of_lanes(int(lesser(m.last[0], m.last[1]) - 2 * NA_GUARDS) + 1)};
  if (region.size == region.columns) m.all = all;
  return m;
}

/// Whether row r meets the position of a word.
NATTEN_FN bool meets(const NA_THREAD Meeting& m, int r, unsigned word) {
  if (NA_MASK_BITS) return (word & m.start[r]) == 0;
  return (~((word - m.start[r]) & (m.last[r] - word)) & NA_GUARDS) == 0;
}

/// Of products of query and key, to logits in powers of two.
struct Scale {
  float factor;  ///< not 0, of which -inf would make NaN
  float hidden;  ///< times `factor` -inf
  bool is_zero;  ///< products become 0 first, or NaN
};
NATTEN_FN Scale scale_of(float scale) {
  constexpr float kLeast = 1.2e-38f;  // a normal number
  const float factor = scale * NA_LOG2_E;
  const bool is_negative = factor < 0.0f, is_zero = greater(factor, -factor) < kLeast;
  return Scale{is_zero ? kLeast : factor, is_negative && !is_zero ? NA_INFINITY : -NA_INFINITY, is_zero};
}

/// Hides the products of pairs that do not meet, of which `all` has none, and where there is a bias makes logits of the
/// others. Returns which pairs meet, by bits.
template <class P>
NATTEN_FN unsigned mask_products(NA_THREAD float (&products)[NA_BLOCK / 8][4], NA_THREAD Scale& scale, P rpb,
                                 const NA_THREADGROUP float* bias, const NA_THREAD int (&entry)[2],
                                 const NA_THREAD Meeting& m, const NA_THREADGROUP unsigned* words, Lane lane,
                                 bool all) {
  bool has_bias = NA_HAS_RPB;
#if NA_HAS_EXTRA
  has_bias = has_bias && !m.is_extra;
#endif
  if (scale.is_zero) {
    NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
      NA_UNROLL for (int e = 0; e < 4; ++e) products[i][e] *= 0.0f;
    }
  }
  if (all && !has_bias) return ~0u;
  const Scale of_product = scale;
  if (has_bias) scale = Scale{1.0f, -NA_INFINITY, false};
  unsigned met = 0;
  NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
    NA_UNROLL for (int e = 0; e < 4; ++e) {
      const int at = 8 * i + 2 * lane.pair + e % 2;
      const bool on = meets(m, e / 2, words[at]);
      met |= on ? 1u << (4 * i + e) : 0u;
      if (!on) {
        products[i][e] = scale.hidden;
      } else if (has_bias) {
        const int place = entry[e / 2] + int(words[NA_CHUNK + at]);
        const float added = NA_STAGED_BIAS > 0 ? bias[place] : NA_LOG2_E * float(rpb[place]);
        products[i][e] = products[i][e] * of_product.factor + added;
      }
    }
  }
  return met;
}

/// The rows of a chunk, whose places are `offsets`, with zeros past the last channel. Each thread has a vector of
/// channels of its own.
template <int kChannels, int kWidth, int kPitch, class T, class P>
NATTEN_FN void copy_rows(NA_THREADGROUP T* to, View<P> from, const NA_THREADGROUP Offset* offsets, int rows,
                         int index) {
  constexpr int kVectors = kWidth / NA_VECTOR, kAtOnce = NA_THREADS / kVectors;
  const int channel = int(unsigned(index) % kVectors) * NA_VECTOR, first = int(unsigned(index) / kVectors);
  if (index >= kAtOnce * kVectors) return;
  const P data = from.data + channel * from.channel;
  to += channel;
  if (kChannels % NA_VECTOR == 0 && from.vectors) {
    for (int row = first; row < rows; row += kAtOnce) {
      if (kWidth <= kChannels || channel < kChannels) {
        copy_to_tile<NA_VECTOR>(to + row * kPitch, data + offsets[row]);
      } else {
        clear_tile<NA_VECTOR>(to + row * kPitch);
      }
    }
  } else {
    for (int row = first; row < rows; row += kAtOnce) {
      NA_UNROLL for (int e = 0; e < NA_VECTOR; ++e) {
        to[row * kPitch + e] = channel + e < kChannels ? T(data[offsets[row] + e * from.channel]) : T(0.0f);
      }
    }
  }
}

/// Whether a sweep may follow another one, of which some threads still read threadgroup memory.
template <bool kQueries>
NATTEN_FN bool sweeps_again() {
  return NA_HAS_EXTRA || (!kQueries && (NA_HEAD_GROUP > 1 || NA_WIDE));
}

/// Streams the region. Body: load_scalars(i, p), and block<kCareful>(meeting, row, all) for rows [row, row + NA_BLOCK),
/// of which the simdgroup's positions meet all, or not. Of the chunk's positions `words` are their words, behind them
/// the bias offsets, and `offsets` the places in A and in B, each found once, by one thread: many then copy their
/// channels.
template <bool kQueries, bool kCareful, class Body>
NATTEN_FN void sweep_region(NA_THREAD Body& body, const NA_THREAD Tile& tile, const NA_THREAD Region& region,
                            const NA_THREAD Meeting& meeting) {
  for (int first = 0; first < region.size; first += NA_CHUNK) {
    // Past the end the last position is repeated, and met by none.
    const int rows = lesser(NA_CHUNK, ceil_div(region.size - first, NA_BLOCK) * NA_BLOCK);
    if (first > 0 || kCareful || sweeps_again<kQueries>()) barrier();  // all have read the previous chunk
    for (int i = body.lane.index; i < rows; i += NA_THREADS) {
      const bool exists = first + i < region.size;
      int c[3], p[3];
      coordinates(c, region, lesser(first + i, region.size - 1));
      NA_UNROLL for (int a = 0; a < 3; ++a) p[a] = c[a] + tile.region[a].start;
      unsigned word = word_of<kQueries>(tile, p, c);
#if NA_HAS_EXTRA
      if (meeting.is_extra) word = word_of_extra();
#endif
      body.words[i] = exists ? word : word_of_nobody();
      if (NA_HAS_RPB) body.words[NA_CHUNK + i] = unsigned(bias_offset<kQueries>(c));
      body.offsets[i] = offset_of(body.from_a, p);
      body.offsets[NA_CHUNK + i] = offset_of(body.from_b, p);
      body.load_scalars(i, p);
    }
    barrier();
    copy_rows<NA_A_CHANNELS, NA_A_WIDTH, NA_A_PITCH>(body.rows_a, body.from_a, body.offsets, rows, body.lane.index);
    copy_rows<NA_B_CHANNELS, NA_B_WIDTH, NA_B_PITCH>(body.rows_b, body.from_b, body.offsets + NA_CHUNK, rows,
                                                     body.lane.index);
    wait_for_copies();
    barrier();
    for (int row = 0; row < rows; row += NA_BLOCK) {
      const Range<int> block{first + row, first + row + NA_BLOCK};
      if (block.start >= meeting.any.end || block.end <= meeting.any.start) continue;
      body.template block<kCareful>(meeting, row, block.start >= meeting.all.start && block.end <= meeting.all.end);
    }
  }
}

#if NA_HAS_EXTRA
/// The extra tokens, which all positions meet.
template <bool kCareful, class Body, class TensorA, class TensorB>
NATTEN_FN void sweep_extra(NA_THREAD Body& body, TensorA a, TensorB b, const NA_THREAD Tile& tile, int head) {
  const auto window_a = body.from_a;
  const auto window_b = body.from_b;
  const Tile extra = extra_tile(tile, a.extra_count);
  body.from_a = extra_view(a, tile, head);
  body.from_b = extra_view(b, tile, head);
  Meeting all;
  all.is_extra = true;
  NA_UNROLL for (int r = 0; r < 2; ++r) {
    all.start[r] = NA_MASK_BITS ? 1u << 31 : 0;  // a bit of no coordinate
    all.last[r] = 2 * NA_GUARDS;
  }
  all.any = all.all = extra.region[2];
  const Region region = region_of(extra);
  sweep_region<true, kCareful>(body, extra, region, all);
  body.from_a = window_a;
  body.from_b = window_b;
}
#endif

/// sums += weights * streamed rows. A weight of 0 does not keep a NaN out of a product, so where the plain sum has got
/// one, the whole is done again with kCareful: only rows that a position meets, whose bits are set in `met`, and
/// without rounding weights.
template <bool kCareful, int kPitch, int kBlocks, class T>
NATTEN_FN void add_weighted(NA_THREAD float (&sums)[kBlocks][4], const NA_THREAD float (&weights)[NA_BLOCK / 8][4],
                            unsigned met, const NA_THREADGROUP T* rows, Lane lane) {
  if (!kCareful) {
    add_rows<kPitch>(sums, weights, rows, lane);
    return;
  }
  NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
    NA_UNROLL_NONE for (int n = 0; n < 8; ++n) {
      const int source = lane_of_pair(lane, n / 2);
      const float even0 = from_lane(weights[i][0], source), odd0 = from_lane(weights[i][1], source);
      const float even1 = from_lane(weights[i][2], source), odd1 = from_lane(weights[i][3], source);
      const unsigned bits = from_lane(met, source) >> (4 * i + n % 2);
      const float weight0 = n % 2 != 0 ? odd0 : even0, weight1 = n % 2 != 0 ? odd1 : even1;
      const NA_THREADGROUP T* const from = rows + (8 * i + n) * kPitch + 2 * lane.pair;
      NA_UNROLL for (int j = 0; j < kBlocks; ++j) {
        NA_UNROLL for (int e = 0; e < 2; ++e) {
          const float x = float(from[8 * j + e]);
          if ((bits & 1u) != 0) sums[j][e] += weight0 * x;
          if ((bits & 4u) != 0) sums[j][2 + e] += weight1 * x;
        }
      }
    }
  }
}

template <int kBlocks>
NATTEN_FN void clear_blocks(NA_THREAD float (&c)[kBlocks][4]) {
  NA_UNROLL for (int j = 0; j < kBlocks; ++j) {
    NA_UNROLL for (int e = 0; e < 4; ++e) c[j][e] = 0.0f;
  }
}

template <int kBlocks>
NATTEN_FN bool all_finite(const NA_THREAD float (&c)[kBlocks][4]) {
  bool finite = true;
  NA_UNROLL for (int j = 0; j < kBlocks; ++j) {
    NA_UNROLL for (int e = 0; e < 4; ++e) finite = finite && c[j][e] - c[j][e] == 0.0f;
  }
  return finite;
}

/// Channels of a thread's vectors as sums are stored: as fragments have them, which takes four stores in the place of
/// one, or where there are registers for it and many channels those of all other stores.
#define NA_STORED ((NA_A_WIDTH > 64 || NA_B_WIDTH > 64) && !NA_WIDE ? NA_VECTOR : 2)

/// A thread's two rows of sums by channels, from the fragments' layout (channels 2 * pair, + 1 of every 8) to vectors
/// pair, pair + 4, ... of NA_STORED.
template <int kHeld, int kBlocks>
NATTEN_FN void to_rows(NA_THREAD float (&to)[2][kHeld], const NA_THREAD float (&c)[kBlocks][4], int lane) {
  NA_UNROLL for (int r = 0; r < 2; ++r) {
    NA_UNROLL for (int i = 0; i < kHeld / 8; ++i) {
      NA_UNROLL for (int d = 0; d < 4; ++d) {
        const int other = lane ^ d;
        NA_UNROLL for (int e = 0; e < 2; ++e) {
          if (NA_STORED == 2) {
            to[r][8 * i + 2 * d + e] = 4 * i + d < kBlocks ? c[4 * i + d < kBlocks ? 4 * i + d : 0][2 * r + e] : 0.0f;
            continue;
          }
          float sent = 0.0f;
          NA_UNROLL for (int j = 0; j < 4; ++j) {
            if (4 * i + j < kBlocks && j == other) sent = c[4 * i + j < kBlocks ? 4 * i + j : 0][2 * r + e];
          }
          const float got = exchange_pairs(sent, d);
          NA_UNROLL for (int j = 0; j < 4; ++j) {
            if (j == other) to[r][8 * i + 2 * j + e] = got;
          }
        }
      }
    }
  }
}

/// Over the four threads of a row.
NATTEN_FN float sum_row(float x) {
  x += exchange_pairs(x, 1);
  return x + exchange_pairs(x, 2);
}
NATTEN_FN float greatest_of_row(float x) {
  x = greatest_number(x, exchange_pairs(x, 1));
  return greatest_number(x, exchange_pairs(x, 2));
}

}  // namespace natten
