// What the kernels on NVIDIA's matrix units share (CUDA only; half types, channels in multiples of 16).
// A warp holds 16 stationary positions: a thread has two neighbours of them, as everywhere, and they are the rows
// lane / 4 and lane / 4 + 8 of mma.m16n8k16. The region of the tile is taken as one flat list of positions, so rows of
// it that are no multiple of 8 waste nothing, and which position meets which is one test on packed coordinates.
namespace natten {

constexpr int kShift1 = NA_BITS_2 + 1, kShift0 = kShift1 + NA_BITS_1 + 1;
/// A bit above each coordinate, which a subtraction borrows when it gets below zero.
constexpr unsigned kGuards = 1u << NA_BITS_2 | 1u << (kShift1 + NA_BITS_1) | 1u << (kShift0 + NA_BITS_0);
constexpr unsigned kNowhere =
    (1u << NA_BITS_2) - 1 | ((1u << NA_BITS_1) - 1) << kShift1 | ((1u << NA_BITS_0) - 1) << kShift0;

/// Lane as the hardware counts them; Tile has it such that the four threads of a row share their positions.
NATTEN_FN int hardware_lane() {
  return threadIdx.x % 32;
}
NATTEN_FN Site matrix_site(Site site) {
  const int lane = hardware_lane();
  site.thread_index += lane % 4 * 8 + lane / 4 - lane;
  return site;
}

NATTEN_FN void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32." NA_MATRIX_TYPE "." NA_MATRIX_TYPE
      ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
NATTEN_FN unsigned rounded_pair(float low, float high) {
  unsigned pair;
  asm("cvt.rn." NA_MATRIX_TYPE "x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
/// Four 8x8 blocks; lane l gives the address of row l % 8 of block l / 8.
template <bool kTransposed, class T>
NATTEN_FN void load_blocks(unsigned (&to)[4], const T* from) {
  const unsigned address = unsigned(__cvta_generic_to_shared(from));
  if (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  }
}

/// The thread's two positions as rows of a left operand: channels 2 * lane, + 1, + 8, + 9 of every 16.
template <int kSteps, class P>
NATTEN_FN void load_operand(unsigned (&to)[kSteps][4], View<P> v, const Items& items, int lane) {
  NA_UNROLL for (int r = 0; r < 2; ++r) {
    const P data = v.data + offset_of(v, items.position[r]);
    NA_UNROLL for (int i = 0; i < 2 * kSteps; ++i) {
      const int channel = 8 * i + 2 * lane;
      if (v.vectors) {
        to[i / 2][i % 2 * 2 + r] = *reinterpret_cast<const unsigned*>(data + channel);
      } else {
        to[i / 2][i % 2 * 2 + r] =
            rounded_pair(float(data[channel * v.channel]), float(data[(channel + 1) * v.channel]));
      }
    }
  }
}

/// The region of a tile as a flat list.
struct Region {
  int size;
  int columns;
  int plane;
  float per_column;
  float per_plane;
};

NATTEN_FN Region region_of(const Tile& tile) {
  Region region;
  region.columns = tile.region[2].end - tile.region[2].start;
  region.plane = region.columns * (tile.region[1].end - tile.region[1].start);
  region.size = region.plane * (tile.region[0].end - tile.region[0].start);
  region.per_column = 1.0f / float(region.columns);
  region.per_plane = 1.0f / float(region.plane);
  return region;
}

/// Coordinates within the region of its n-th position. The host sees to it that n < 2^20, where this is exact.
NATTEN_FN void coordinates(int (&to)[3], const Region& region, int n) {
  to[0] = int((float(n) + 0.5f) * region.per_plane);
  n -= to[0] * region.plane;
  to[1] = int((float(n) + 0.5f) * region.per_column);
  to[2] = n - to[1] * region.columns;
}

NATTEN_FN unsigned packed(int c0, int c1, int c2) {
  return unsigned(c0) << kShift0 | unsigned(c1) << kShift1 | unsigned(c2);
}

/// What the thread's positions meet, in packed coordinates; flat ranges of what any position of the warp meets, and of
/// what all do, which is known where the region is one row.
struct Meeting {
  unsigned start[2];
  unsigned last[2];
  Range<int> any;
  Range<int> all;
};

NATTEN_FN Meeting meeting_of(const Tile& tile, const Items& items, const Region& region) {
  Meeting m;
  m.any = m.all = Range<int>{region.size, 0};
  NA_UNROLL for (int r = 0; r < 2; ++r) {
    int s[3], l[3];
    bool empty = false;
    NA_UNROLL for (int a = 0; a < 3; ++a) {
      s[a] = items.met[r][a].start - tile.region[a].start;
      l[a] = items.met[r][a].end - 1 - tile.region[a].start;
      empty = empty || l[a] < s[a];
    }
    m.start[r] = empty ? kNowhere : packed(s[0], s[1], s[2]);
    m.last[r] = (empty ? 0u : packed(l[0], l[1], l[2])) + 2 * kGuards;
    if (!empty) {
      m.any.start = lesser(m.any.start, s[0] * region.plane + s[1] * region.columns + s[2]);
      m.any.end = greater(m.any.end, l[0] * region.plane + l[1] * region.columns + l[2] + 1);
    }
  }
  m.any.start = __reduce_min_sync(0xffffffffu, m.any.start);
  m.any.end = __reduce_max_sync(0xffffffffu, m.any.end);
  if (region.size == region.columns) {
    m.all.start = __reduce_max_sync(0xffffffffu, int(greater(m.start[0], m.start[1])));
    m.all.end = __reduce_min_sync(0xffffffffu, int(lesser(m.last[0], m.last[1]) - 2 * kGuards) + 1);
  }
  return m;
}

/// Whether row r meets the position whose coordinates are `word`, which has its guards set.
NATTEN_FN bool meets(const Meeting& m, int r, unsigned word) {
  return (~((word - m.start[r]) & (m.last[r] - word)) & kGuards) == 0;
}

NATTEN_FN void scale_logits(float (&logits)[NA_BLOCK / 8][4], float factor) {
  NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
    NA_UNROLL for (int e = 0; e < 4; ++e) logits[i][e] *= factor;
  }
}

/// Logits of pairs that do not meet become -inf. Returns which pairs meet, by bits.
NATTEN_FN unsigned mask_logits(float (&logits)[NA_BLOCK / 8][4], const Meeting& m, const unsigned* words) {
  unsigned met = 0;
  NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
    NA_UNROLL for (int e = 0; e < 4; ++e) {
      const bool on = meets(m, e / 2, words[8 * i + hardware_lane() % 4 * 2 + e % 2]);
      if (!on) logits[i][e] = -NA_INFINITY;
      met |= on ? 1u << (4 * i + e) : 0u;
    }
  }
  return met;
}

/// Bias entries of the thread's positions with the region's first one.
template <bool kQueries>
NATTEN_FN void bias_entries(int (&entry)[2], const Tile& tile, const Items& items) {
  const Batch first = {tile.region[0].start, tile.region[1].start, tile.region[2].start, 0, 0, 0};
  NA_UNROLL for (int r = 0; r < 2; ++r) entry[r] = rpb_entry(tile, pair_of<kQueries>(tile, items, first, r, 0));
}

/// Adds the bias of pairs that meet. Along each axis of the region the entry moves with a key, or against a query.
template <bool kQueries, class P>
NATTEN_FN void add_bias(float (&logits)[NA_BLOCK / 8][4], P rpb, const int (&entry)[2], const Meeting& m,
                        const unsigned* words) {
  NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
    NA_UNROLL for (int e = 0; e < 2; ++e) {
      const unsigned word = words[8 * i + hardware_lane() % 4 * 2 + e];
      const int c0 = int(word >> kShift0 & ((1u << NA_BITS_0) - 1)) * (kQueries ? 1 : -NA_STEP_0);
      const int c1 = int(word >> kShift1 & ((1u << NA_BITS_1) - 1)) * (kQueries ? 1 : -NA_STEP_1);
      const int c2 = int(word & ((1u << NA_BITS_2) - 1)) * (kQueries ? 1 : -NA_STEP_2);
      const int offset = (c0 * (2 * NA_KERNEL_SIZE_1 - 1) + c1) * (2 * NA_KERNEL_SIZE_2 - 1) + c2;
      NA_UNROLL for (int r = 0; r < 2; ++r) {
        if (meets(m, r, word)) logits[i][2 * r + e] += NA_LOG2_E * float(rpb[entry[r] + offset]);
      }
    }
  }
}

template <int kChannels, class T, class P>
NATTEN_FN void copy_channels(T* to, View<P> from, const int* p, int channel) {
  if (channel >= kChannels) return;
  const P data = from.data + offset_of(from, p) + channel * from.channel;
  if (from.vectors) {
    copy_to_tile<8>(to + channel, data);
  } else {
    NA_UNROLL for (int e = 0; e < 8; ++e) to[channel + e] = data[e * from.channel];
  }
}

/// Packed coordinates of the chunk's positions.
NATTEN_FN unsigned* shared_words() {
  __shared__ alignas(16) unsigned words[NA_CHUNK];
  return words;
}

/// Streams the region. Body: load_scalars(i, p), and block<kCareful>(meeting, row, all) for rows [row, row + NA_BLOCK),
/// of which the warp's positions meet all, or not.
template <bool kCareful, class Body>
NATTEN_FN void sweep_region(Body& body, const Tile& tile, const Region& region, const Meeting& meeting) {
  constexpr int kVectors = (NA_A_CHANNELS > NA_B_CHANNELS ? NA_A_CHANNELS : NA_B_CHANNELS) / 8;
  for (int first = 0; first < region.size; first += NA_CHUNK) {
    // Past the end the last position is repeated, and met by none.
    const int rows = lesser(NA_CHUNK, ceil_div(region.size - first, NA_BLOCK) * NA_BLOCK);
    barrier();  // all have read the previous chunk
    for (int i = threadIdx.x; i < rows * kVectors; i += NA_THREADS) {
      const int row = i / kVectors, channel = i % kVectors * 8;
      int p[3];
      coordinates(p, region, lesser(first + row, region.size - 1));
      NA_UNROLL for (int a = 0; a < 3; ++a) p[a] += tile.region[a].start;
      copy_channels<NA_A_CHANNELS>(body.rows_a + row * NA_A_PITCH, body.from_a, p, channel);
      copy_channels<NA_B_CHANNELS>(body.rows_b + row * NA_B_PITCH, body.from_b, p, channel);
    }
    for (int i = threadIdx.x; i < rows; i += NA_THREADS) {
      int p[3];
      coordinates(p, region, lesser(first + i, region.size - 1));
      shared_words()[i] = kGuards | (first + i < region.size ? packed(p[0], p[1], p[2]) : kNowhere);
      NA_UNROLL for (int a = 0; a < 3; ++a) p[a] += tile.region[a].start;
      body.load_scalars(i, p);
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

/// c[i] += products of the held positions with rows 8 * i ... of threadgroup memory.
template <int kPitch, int kSteps, class T>
NATTEN_FN void multiply_rows(float (&c)[NA_BLOCK / 8][4], const unsigned (&held)[kSteps][4], const T* rows) {
  const int lane = hardware_lane();
  const T* const from = rows + (lane % 8 + lane / 16 * 8) * kPitch + lane / 8 % 2 * 8;
  NA_UNROLL for (int s = 0; s < kSteps; ++s) {
    NA_UNROLL for (int i = 0; i < NA_BLOCK / 16; ++i) {
      unsigned b[4];
      load_blocks<false>(b, from + i * 16 * kPitch + s * 16);
      multiply(c[2 * i], held[s], b[0], b[1]);
      multiply(c[2 * i + 1], held[s], b[2], b[3]);
    }
  }
}

/// c += weights * rows. A weight of 0 does not keep a NaN out, so where the plain sum has got one, the whole is done
/// again with kCareful: only rows that a position meets, whose bits are set in `met`, and without rounding weights.
template <bool kCareful, int kPitch, int kBlocks, class T>
NATTEN_FN void add_rows(float (&c)[kBlocks][4], const float (&weights)[NA_BLOCK / 8][4], unsigned met, const T* rows) {
  const int lane = hardware_lane();
  if constexpr (!kCareful) {
    const T* const from = rows + lane % 16 * kPitch + lane / 16 * 8;
    NA_UNROLL for (int i = 0; i < NA_BLOCK / 16; ++i) {
      unsigned a[4];
      NA_UNROLL for (int h = 0; h < 4; ++h) {
        a[h] = rounded_pair(weights[2 * i + h / 2][h % 2 * 2], weights[2 * i + h / 2][h % 2 * 2 + 1]);
      }
      NA_UNROLL for (int j = 0; j < kBlocks / 2; ++j) {
        unsigned b[4];
        load_blocks<true>(b, from + i * 16 * kPitch + j * 16);
        multiply(c[2 * j], a, b[0], b[1]);
        multiply(c[2 * j + 1], a, b[2], b[3]);
      }
    }
  } else {
    NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
      _Pragma("unroll 1") for (int n = 0; n < 8; ++n) {
        const int source = lane / 4 * 4 + n / 2;
        const float even0 = __shfl_sync(0xffffffffu, weights[i][0], source);
        const float odd0 = __shfl_sync(0xffffffffu, weights[i][1], source);
        const float even1 = __shfl_sync(0xffffffffu, weights[i][2], source);
        const float odd1 = __shfl_sync(0xffffffffu, weights[i][3], source);
        const unsigned bits = __shfl_sync(0xffffffffu, met, source) >> (4 * i + n % 2);
        const float weight0 = n % 2 ? odd0 : even0, weight1 = n % 2 ? odd1 : even1;
        const T* const from = rows + (8 * i + n) * kPitch + lane % 4 * 2;
        NA_UNROLL for (int j = 0; j < kBlocks; ++j) {
          NA_UNROLL for (int e = 0; e < 2; ++e) {
            const float x = float(from[8 * j + e]);
            if (bits & 1) c[j][e] += weight0 * x;
            if (bits & 4) c[j][2 + e] += weight1 * x;
          }
        }
      }
    }
  }
}

template <int kBlocks>
NATTEN_FN void clear_blocks(float (&c)[kBlocks][4]) {
  NA_UNROLL for (int j = 0; j < kBlocks; ++j) {
    NA_UNROLL for (int e = 0; e < 4; ++e) c[j][e] = 0.0f;
  }
}

template <int kBlocks>
NATTEN_FN bool all_finite(const float (&c)[kBlocks][4]) {
  bool finite = true;
  NA_UNROLL for (int j = 0; j < kBlocks; ++j) {
    NA_UNROLL for (int e = 0; e < 4; ++e) finite = finite && fabsf(c[j][e]) < NA_INFINITY;
  }
  return finite;
}

/// From the matrix units' layout (channels 2 * lane, + 1 of every 8) to that of all stores (vectors lane, lane + 4,
/// ...).
template <int kHeld, int kBlocks>
NATTEN_FN void to_vectors(float (&to)[2][kHeld], const float (&c)[kBlocks][4], int lane) {
  NA_UNROLL for (int r = 0; r < 2; ++r) {
    NA_UNROLL for (int i = 0; i < kHeld / NA_VECTOR; ++i) {
      NA_UNROLL for (int d = 0; d < 4; ++d) {
        const int other = lane ^ d;
        NA_UNROLL for (int e = 0; e < 2; ++e) {
          float sent = 0.0f;
          NA_UNROLL for (int j = 0; j < 4; ++j) {
            if (4 * i + j < kBlocks && j == other) sent = c[4 * i + j < kBlocks ? 4 * i + j : 0][2 * r + e];
          }
          const float got = exchange(sent, d);
          NA_UNROLL for (int j = 0; j < 4; ++j) {
            if (j == other) to[r][i * NA_VECTOR + 2 * j + e] = got;
          }
        }
      }
    }
  }
}

/// Sum over the four threads of a row.
NATTEN_FN float sum_row(float x) {
  x += exchange(x, 1);
  return x + exchange(x, 2);
}

}  // namespace natten
