// Fragments of a warp's tile of sums on NVIDIA's matrix units: mma.m16n8k16 of half types, mma.m16n8k8 of float32
// rounded to tf32, with float32 sums. What matrix.h needs of an engine, here and in fragments_metal.h:
//   where a lane's elements lie: of each block of 16 rows and 8 columns it holds (row, column), (row, column + 1) and
//     the same eight rows further down;
//   Held: the warp's 16 stationary positions as a left operand, from device memory; HeldRows: the same, or with
//     NA_WIDE, where registers are few, read anew for each product;
//   simd_barrier: of the warp, for threadgroup memory;
//   multiply_rows: sums += held * transpose(streamed rows);  add_rows: sums += weights * streamed rows.
namespace natten {

/// A thread of a threadgroup, and where the elements lie that it holds: row `row` and columns 2 * `pair`, + 1 of a
/// block.
struct Lane {
  int index;  ///< of the thread in its threadgroup
  int row;
  int pair;
};

NATTEN_FN Lane lane_of(int index) {
  const int lane = int(unsigned(index) % 32);
  return Lane{index, lane / 4, lane % 4};
}
/// The lane of the simdgroup that holds pair `pair` of this lane's row.
NATTEN_FN int lane_of_pair(Lane lane, int pair) {
  return lane.row * 4 + pair;
}
/// From the lane of this row whose pair is `distance` away, by exclusive or.
NATTEN_FN float exchange_pairs(float x, int distance) {
  return exchange(x, distance);
}

NATTEN_FN void simd_barrier() {
  __syncwarp();
}

template <class T, int kChannels>
struct Held {
  static constexpr int kSteps = (kChannels + 15) / 16;
  unsigned v[kSteps][4];

  static constexpr bool kReread = false;

  NATTEN_FN bool vectors() const { return true; }
  template <bool kVectors>
  NATTEN_FN void step(unsigned (&to)[4], int s) const {
    NA_UNROLL for (int h = 0; h < 4; ++h) to[h] = v[s][h];
  }

  template <class P>
  NATTEN_FN void load(View<P> from, const Items& items, Lane lane) {
    NA_UNROLL for (int r = 0; r < 2; ++r) {
      const P data = from.data + offset_of(from, items.position[r]);
      if (kChannels % 8 == 0 && from.vectors) {
        NA_UNROLL for (int i = 0; i < 2 * kSteps; ++i) {
          v[i / 2][i % 2 * 2 + r] =
              8 * i < kChannels ? *reinterpret_cast<const unsigned*>(data + 8 * i + 2 * lane.pair) : 0u;
        }
      } else {
        NA_UNROLL for (int i = 0; i < 2 * kSteps; ++i) {
          const int channel = 8 * i + 2 * lane.pair;
          v[i / 2][i % 2 * 2 + r] =
              rounded_pair<T>(channel < kChannels ? float(data[channel * from.channel]) : 0.0f,
                              channel + 1 < kChannels ? float(data[(channel + 1) * from.channel]) : 0.0f);
        }
      }
    }
  }
};

/// Of 8 channels: of both rows channel `pair`, then channel `pair` + 4.
template <int kChannels>
struct Held<float, kChannels> {
  static constexpr int kSteps = (kChannels + 7) / 8;
  unsigned v[kSteps][4];

  static constexpr bool kReread = false;

  NATTEN_FN bool vectors() const { return true; }
  template <bool kVectors>
  NATTEN_FN void step(unsigned (&to)[4], int s) const {
    NA_UNROLL for (int h = 0; h < 4; ++h) to[h] = v[s][h];
  }

  template <class P>
  NATTEN_FN void load(View<P> from, const Items& items, Lane lane) {
    NA_UNROLL for (int r = 0; r < 2; ++r) {
      const P data = from.data + offset_of(from, items.position[r]);
      NA_UNROLL for (int i = 0; i < 2 * kSteps; ++i) {
        const int channel = 4 * i + lane.pair;
        v[i / 2][i % 2 * 2 + r] = channel < kChannels ? rounded_tf32(float(data[channel * from.channel])) : 0u;
      }
    }
  }
};

/// Of half types.
template <class T, int kChannels, class P>
struct Reread {
  static constexpr bool kReread = true;
  static constexpr int kSteps = (kChannels + 15) / 16;
  P data[2];
  Offset channel;
  int pair;
  bool in_vectors;

  NATTEN_FN void load(View<P> from, const Items& items, Lane lane) {
    channel = from.channel;
    pair = lane.pair;
    in_vectors = kChannels % 8 == 0 && from.vectors;
    NA_UNROLL for (int r = 0; r < 2; ++r) data[r] = from.data + offset_of(from, items.position[r]);
  }
  NATTEN_FN bool vectors() const { return in_vectors; }
  NATTEN_FN float number(int r, int c) const { return c < kChannels ? float(data[r][c * channel]) : 0.0f; }
  template <bool kVectors>
  NATTEN_FN void step(unsigned (&to)[4], int s) const {
    NA_UNROLL for (int h = 0; h < 4; ++h) {
      const int first = s * 16 + h / 2 * 8, r = h % 2;
      if (kVectors) {
        to[h] = first < kChannels ? *reinterpret_cast<const unsigned*>(data[r] + first + 2 * pair) : 0u;
      } else {
        to[h] = rounded_pair<T>(number(r, first + 2 * pair), number(r, first + 2 * pair + 1));
      }
    }
  }
};

#if NA_WIDE
template <class T, int kChannels, class P>
using HeldRows = Reread<T, kChannels, P>;
#else
template <class T, int kChannels, class P>
using HeldRows = Held<T, kChannels>;
#endif

/// Of step `s` of the held rows.
template <int kPitch, class T>
NATTEN_FN void multiply_step(float (&c)[NA_BLOCK / 8][4], const unsigned (&a)[4], int s, const T* rows, Lane lane) {
  const unsigned l = unsigned(lane.index) % 32;
  const T* const from = rows + (l % 8 + l / 16 * 8) * kPitch + l / 8 % 2 * 8;
  NA_UNROLL for (int i = 0; i < NA_BLOCK / 16; ++i) {
    unsigned b[4];
    load_fragments<false>(b, from + i * 16 * kPitch + s * 16);
    multiply_fragments<T>(c[2 * i], a, b[0], b[1]);
    multiply_fragments<T>(c[2 * i + 1], a, b[2], b[3]);
  }
}

/// The weights are rounded to the streamed type.
template <int kPitch, int kBlocks, class T>
NATTEN_FN void add_rows(float (&c)[kBlocks][4], const float (&weights)[NA_BLOCK / 8][4], const T* rows, Lane lane) {
  const unsigned l = unsigned(lane.index) % 32;
  const T* const from = rows + l % 16 * kPitch + l / 16 * 8;
  NA_UNROLL for (int i = 0; i < NA_BLOCK / 16; ++i) {
    unsigned a[4];
    NA_UNROLL for (int h = 0; h < 4; ++h) {
      a[h] = rounded_pair<T>(weights[2 * i + h / 2][h % 2 * 2], weights[2 * i + h / 2][h % 2 * 2 + 1]);
    }
    NA_UNROLL for (int j = 0; j < kBlocks / 2; ++j) {
      unsigned b[4];
      load_fragments<true>(b, from + i * 16 * kPitch + j * 16);
      multiply_fragments<T>(c[2 * j], a, b[0], b[1]);
      multiply_fragments<T>(c[2 * j + 1], a, b[2], b[3]);
    }
  }
}

// The same of float32. A block of 8 rows and 4 channels is one of 8x8 16-bit numbers to load_fragments.

template <int kPitch>
NATTEN_FN void multiply_step(float (&c)[NA_BLOCK / 8][4], const unsigned (&a)[4], int s, const float* rows, Lane lane) {
  const unsigned l = unsigned(lane.index) % 32;
  const float* const from = rows + (l % 8 + l / 16 * 8) * kPitch + l / 8 % 2 * 4;
  NA_UNROLL for (int i = 0; i < NA_BLOCK / 16; ++i) {
    unsigned b[4];
    load_fragments<false>(b, from + i * 16 * kPitch + s * 8);
    NA_UNROLL for (int j = 0; j < 4; ++j) b[j] = rounded_tf32(__uint_as_float(b[j]));
    multiply_tf32(c[2 * i], a, b[0], b[1]);
    multiply_tf32(c[2 * i + 1], a, b[2], b[3]);
  }
}

/// The order of the inner dimension is free: places `pair` and `pair` + 4 of it are the weights that the lane has.
template <int kPitch, int kBlocks>
NATTEN_FN void add_rows(float (&c)[kBlocks][4], const float (&weights)[NA_BLOCK / 8][4], const float* rows, Lane lane) {
  NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
    const float* const from = rows + (8 * i + 2 * lane.pair) * kPitch + lane.row;
    unsigned a[4];
    NA_UNROLL for (int h = 0; h < 4; ++h) a[h] = rounded_tf32(weights[i][h % 2 * 2 + h / 2]);
    NA_UNROLL for (int j = 0; j < kBlocks; ++j) {
      multiply_tf32(c[j], a, rounded_tf32(from[8 * j]), rounded_tf32(from[kPitch + 8 * j]));
    }
  }
}

template <int kPitch, class Rows, class T>
NATTEN_FN void multiply_rows(float (&c)[NA_BLOCK / 8][4], const Rows& held, const T* rows, Lane lane) {
  unsigned a[4];
  if (!Rows::kReread || held.vectors()) {
    NA_UNROLL for (int s = 0; s < Rows::kSteps; ++s) {
      held.template step<true>(a, s);
      multiply_step<kPitch>(c, a, s, rows, lane);
    }
  } else {  // no loop over registers: all these addresses would be kept from block to block
    NA_UNROLL_NONE for (int s = 0; s < Rows::kSteps; ++s) {
      held.template step<false>(a, s);
      multiply_step<kPitch>(c, a, s, rows, lane);
    }
  }
}

}  // namespace natten
