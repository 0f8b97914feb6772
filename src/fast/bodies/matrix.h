// What the kernels on matrix units share, over the fragments of an engine (fragments_cuda.h, fragments_metal.h).
// A simdgroup holds 16 stationary positions: a thread has two neighbours of them, as everywhere, and they are the rows
// `row` and `row` + 8 of its fragments. The region of the tile is taken as one flat list of positions, so rows of it
// that are no multiple of 8 waste nothing, and which position meets which is one test on packed coordinates: each has
// NA_BITS of its axis, from NA_SHIFT on, and a bit above it, which a subtraction borrows when it gets below zero.
namespace natten {

/// Tile deals positions out by threads: such that the four threads of a row share theirs.
NATTEN_FN Site matrix_site(Site site, Lane lane) {
  site.thread_index = site.thread_index / 32 * 32 + lane.pair * 8 + lane.row;
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

/// What the thread's positions meet, in packed coordinates; flat ranges of what any position of the warp meets, and of
/// what all do, which is known where the region is one row.
struct Meeting {
  unsigned start[2];
  unsigned last[2];
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
    m.start[r] = empty ? NA_NOWHERE : packed(s[0], s[1], s[2]);
    m.last[r] = (empty ? 0u : packed(l[0], l[1], l[2])) + 2 * NA_GUARDS;
    if (!empty) {
      m.any.start = lesser(m.any.start, s[0] * region.plane + s[1] * region.columns + s[2]);
      m.any.end = greater(m.any.end, l[0] * region.plane + l[1] * region.columns + l[2] + 1);
    }
  }
  m.any.start = least_of_lanes(m.any.start);
  m.any.end = greatest_of_lanes(m.any.end);
  // On no condition: of a reduction that has one, ptxas (CUDA 12.9, 13.0) forgets which predicate that is.
  const Range<int> all = {greatest_of_lanes(int(greater(m.start[0], m.start[1]))),
                          least_of_lanes(int(lesser(m.last[0], m.last[1]) - 2 * NA_GUARDS) + 1)};
  if (region.size == region.columns) m.all = all;
  return m;
}

/// Whether row r meets the position whose coordinates are `word`, which has its guards set.
NATTEN_FN bool meets(const NA_THREAD Meeting& m, int r, unsigned word) {
  return (~((word - m.start[r]) & (m.last[r] - word)) & NA_GUARDS) == 0;
}

NATTEN_FN void scale_logits(NA_THREAD float (&logits)[NA_BLOCK / 8][4], float factor) {
  NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
    NA_UNROLL for (int e = 0; e < 4; ++e) logits[i][e] *= factor;
  }
}

/// Logits of pairs that do not meet become -inf. Returns which pairs meet, by bits.
NATTEN_FN unsigned mask_logits(NA_THREAD float (&logits)[NA_BLOCK / 8][4], const NA_THREAD Meeting& m,
                               const NA_THREADGROUP unsigned* words, Lane lane) {
  unsigned met = 0;
  NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
    NA_UNROLL for (int e = 0; e < 4; ++e) {
      const bool on = meets(m, e / 2, words[8 * i + 2 * lane.pair + e % 2]);
      if (!on) logits[i][e] = -NA_INFINITY;
      met |= on ? 1u << (4 * i + e) : 0u;
    }
  }
  return met;
}

/// Bias entries of the thread's positions with the region's first one.
template <bool kQueries>
NATTEN_FN void bias_entries(NA_THREAD int (&entry)[2], const NA_THREAD Tile& tile, const NA_THREAD Items& items) {
  const Batch first = {tile.region[0].start, tile.region[1].start, tile.region[2].start, 0, 0, 0};
  NA_UNROLL for (int r = 0; r < 2; ++r) entry[r] = rpb_entry(tile, pair_of<kQueries>(tile, items, first, r, 0));
}

/// From a bias entry with the region's first position to that with another: along each axis it moves with a key, or
/// against a query.
template <bool kQueries>
NATTEN_FN int bias_offset(unsigned word) {
  const int c0 = int(word >> NA_SHIFT_0 & ((1u << NA_BITS_0) - 1)) * (kQueries ? 1 : -NA_STEP_0);
  const int c1 = int(word >> NA_SHIFT_1 & ((1u << NA_BITS_1) - 1)) * (kQueries ? 1 : -NA_STEP_1);
  const int c2 = int(word & ((1u << NA_BITS_2) - 1)) * (kQueries ? 1 : -NA_STEP_2);
  return (c0 * (2 * NA_KERNEL_SIZE_1 - 1) + c1) * (2 * NA_KERNEL_SIZE_2 - 1) + c2;
}

/// Adds the bias of pairs that meet.
template <bool kQueries, class P>
NATTEN_FN void add_bias(NA_THREAD float (&logits)[NA_BLOCK / 8][4], P rpb, const NA_THREAD int (&entry)[2],
                        const NA_THREAD Meeting& m, const NA_THREADGROUP unsigned* words, Lane lane) {
#if NA_HAS_EXTRA
  if (m.is_extra) return;
#endif
  NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
    NA_UNROLL for (int e = 0; e < 2; ++e) {
      const unsigned word = words[8 * i + 2 * lane.pair + e];
      const int offset = bias_offset<kQueries>(word);
      NA_UNROLL for (int r = 0; r < 2; ++r) {
        if (meets(m, r, word)) logits[i][2 * r + e] += NA_LOG2_E * float(rpb[entry[r] + offset]);
      }
    }
  }
}

/// A vector of channels of the position at `offset`, with zeros past the last.
template <int kChannels, int kWidth, class T, class P>
NATTEN_FN void copy_channels(NA_THREADGROUP T* to, View<P> from, Offset offset, int channel) {
  if (channel >= kWidth) return;
  const P data = from.data + offset + channel * from.channel;
  if (kChannels % NA_VECTOR == 0 && from.vectors && channel < kChannels) {
    copy_to_tile<NA_VECTOR>(to + channel, data);
  } else {
    NA_UNROLL for (int e = 0; e < NA_VECTOR; ++e) {
      to[channel + e] = channel + e < kChannels ? T(data[e * from.channel]) : T(0.0f);
    }
  }
}

/// Streams the region. Body: load_scalars(i, p), and block<kCareful>(meeting, row, all) for rows [row, row + NA_BLOCK),
/// of which the simdgroup's positions meet all, or not. Of the chunk's positions `words` are the packed coordinates and
/// `offsets` the places in A and in B, each found once, by one thread: many then copy their channels.
template <bool kCareful, class Body>
NATTEN_FN void sweep_region(NA_THREAD Body& body, const NA_THREAD Tile& tile, const NA_THREAD Region& region,
                            const NA_THREAD Meeting& meeting) {
  constexpr int kVectors = (NA_A_WIDTH > NA_B_WIDTH ? NA_A_WIDTH : NA_B_WIDTH) / NA_VECTOR;
  for (int first = 0; first < region.size; first += NA_CHUNK) {
    // Past the end the last position is repeated, and met by none.
    const int rows = lesser(NA_CHUNK, ceil_div(region.size - first, NA_BLOCK) * NA_BLOCK);
    barrier();  // all have read the previous chunk
    for (int i = body.lane.index; i < rows; i += NA_THREADS) {
      int p[3];
      coordinates(p, region, lesser(first + i, region.size - 1));
      body.words[i] = NA_GUARDS | (first + i < region.size ? packed(p[0], p[1], p[2]) : NA_NOWHERE);
#if NA_HAS_EXTRA
      if (meeting.is_extra && first + i < region.size) body.words[i] = NA_GUARDS;  // met by all
#endif
      NA_UNROLL for (int a = 0; a < 3; ++a) p[a] += tile.region[a].start;
      body.offsets[i] = offset_of(body.from_a, p);
      body.offsets[NA_CHUNK + i] = offset_of(body.from_b, p);
      body.load_scalars(i, p);
    }
    barrier();
    for (int i = body.lane.index; i < rows * kVectors; i += NA_THREADS) {
      const int row = i / kVectors, channel = i % kVectors * NA_VECTOR;
      copy_channels<NA_A_CHANNELS, NA_A_WIDTH>(body.rows_a + row * NA_A_PITCH, body.from_a, body.offsets[row], channel);
      copy_channels<NA_B_CHANNELS, NA_B_WIDTH>(body.rows_b + row * NA_B_PITCH, body.from_b,
                                               body.offsets[NA_CHUNK + row], channel);
    }
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
/// The extra tokens: with coordinates 0, which all positions meet.
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
    all.start[r] = 0;
    all.last[r] = 2 * NA_GUARDS;
  }
  all.any = all.all = extra.region[2];
  const Region region = region_of(extra);
  sweep_region<kCareful>(body, extra, region, all);
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

/// From the fragments' layout (channels 2 * pair, + 1 of every 8) to that of all stores (vectors pair, pair + 4, ...).
template <int kHeld, int kBlocks>
NATTEN_FN void to_vectors(NA_THREAD float (&to)[2][kHeld], const NA_THREAD float (&c)[kBlocks][4], int lane) {
  NA_UNROLL for (int r = 0; r < 2; ++r) {
    NA_UNROLL for (int i = 0; i < kHeld / NA_VECTOR; ++i) {
      NA_UNROLL for (int d = 0; d < 4; ++d) {
        const int other = lane ^ d;
        NA_UNROLL for (int e = 0; e < 2; ++e) {
          float sent = 0.0f;
          NA_UNROLL for (int j = 0; j < 4; ++j) {
            if (4 * i + j < kBlocks && j == other) sent = c[4 * i + j < kBlocks ? 4 * i + j : 0][2 * r + e];
          }
          const float got = exchange_pairs(sent, d);
          NA_UNROLL for (int j = 0; j < 4; ++j) {
            if (j == other) to[r][i * NA_VECTOR + 2 * j + e] = got;
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
  x = greater(x, exchange_pairs(x, 1));
  return greater(x, exchange_pairs(x, 2));
}

}  // namespace natten
