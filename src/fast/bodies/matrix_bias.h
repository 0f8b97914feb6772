// The relative position bias on matrix units. Along each axis its entries move with a key, and against a query, at even
// distances: so a pair's entry is that of one position with the region's first, and an offset of the streamed one's.
namespace natten {

NATTEN_FN int bias_axis_step(int a) {
  return a == 2 ? 1 : (2 * NA_KERNEL_SIZE_2 - 1) * (a == 1 ? 1 : 2 * NA_KERNEL_SIZE_1 - 1);
}

/// Bias entries of the thread's positions with the region's first one.
template <bool kQueries>
NATTEN_FN void bias_entries(NA_THREAD int (&entry)[2], const NA_THREAD Tile& tile, const NA_THREAD Items& items) {
  const Batch first = {tile.region[0].start, tile.region[1].start, tile.region[2].start, 0, 0, 0};
  NA_UNROLL for (int r = 0; r < 2; ++r) entry[r] = rpb_entry(tile, pair_of<kQueries>(tile, items, first, r, 0));
}

/// From a bias entry with the region's first position to that with the one whose coordinates are `c`.
template <bool kQueries>
NATTEN_FN int bias_offset(const NA_THREAD int (&c)[3]) {
  int offset = 0;
  NA_UNROLL for (int a = 0; a < 3; ++a) {
    offset += bias_axis_step(a) * c[a] * (kQueries ? 1 : -NA_BY_AXIS(NA_STEP, a));
  }
  return offset;
}

/// From the bias entry of a simdgroup's first held position to that of item r of its row `row`. A constant: positions
/// are dealt out from boxes (NA_BOX) whose extents are powers of two.
template <bool kQueries>
NATTEN_FN int bias_of_held(int row, int r) {
  int offset = 0;
  NA_UNROLL for (int a = 2; a >= 0; --a) {
    const int threads = NA_BY_AXIS(NA_BOX, a) / run_on_axis(a);
    const int c = row % threads * run_on_axis(a) + (a == NA_RUN_AXIS ? r : 0);
    row /= threads;
    offset += bias_axis_step(a) * c * (kQueries ? -NA_BY_AXIS(NA_STEP, a) : 1);
  }
  return offset;
}

/// A head's bias table in powers of two, in threadgroup memory where it has room there.
template <class P>
NATTEN_FN void stage_bias(NA_THREADGROUP float* to, P rpb, int index) {
  for (int i = index; i < NA_STAGED_BIAS; i += NA_THREADS) to[i] = NA_LOG2_E * float(rpb[i]);
}

#define NA_STAGE_PITCH (NA_BLOCK + 8)  // of logit gradients: of eight rows of fragments two share banks

/// Gradient of the bias table of a simdgroup's own queries, in a table in threadgroup memory. Each block is added query
/// by query: the keys of one have distinct entries, so lanes add at once and the order is fixed.
struct SimdBiasSums {
  NA_THREADGROUP float* table;
  NA_THREADGROUP float* staged;  ///< a block's logit gradients by query

  NATTEN_FN void begin(NA_THREADGROUP float* tables, Lane lane) NA_THREAD {
    table = tables + lane.index / 32 * (16 * NA_STAGE_COLUMNS);
    staged = table + 16 * (NA_STAGE_COLUMNS - NA_STAGE_PITCH);
    for (int i = lane.index % 32; i < NA_RPB_SIZE; i += 32) table[i] = 0.0f;
    simd_barrier();
  }

  /// Those that are not 0, as those of pairs that do not meet must be. `first`: the entry of the simdgroup's first
  /// query with the region's first key; `offsets`: of the block's keys.
  NATTEN_FN void add(const NA_THREAD float (&gradients)[NA_BLOCK / 8][4], int first,
                     const NA_THREADGROUP unsigned* offsets, Lane lane) NA_THREAD {
    if (!NA_BIAS_GRADIENT) return;
    constexpr int kParts = (NA_BLOCK + 31) / 32;  // of the block, each a key for a lane
    NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
      NA_UNROLL for (int r = 0; r < 2; ++r) {
        store_pair(staged + (lane.row + 8 * r) * NA_STAGE_PITCH + 8 * i + 2 * lane.pair, gradients[i][2 * r],
                   gradients[i][2 * r + 1]);
      }
    }
    simd_barrier();
    const int key = lane.index % 32;
    const bool has_key = NA_BLOCK % 32 == 0 || key < NA_BLOCK;
    int entry[kParts];
    NA_UNROLL for (int part = 0; part < kParts; ++part) {
      entry[part] = first + int(offsets[has_key ? 32 * part + key : 0]);
    }
    NA_UNROLL for (int r = 0; r < 2; ++r) {
      float added[8][kParts];
      NA_UNROLL for (int q = 0; q < 8; ++q) {
        NA_UNROLL for (int part = 0; part < kParts; ++part) {
          added[q][part] = has_key ? staged[(8 * r + q) * NA_STAGE_PITCH + 32 * part + key] : 0.0f;
        }
      }
      NA_UNROLL for (int q = 0; q < 8; ++q) {
        NA_UNROLL for (int part = 0; part < kParts; ++part) {
          if (added[q][part] != 0.0f) table[entry[part] + bias_of_held<true>(q, r)] += added[q][part];
        }
        simd_barrier();
      }
    }
  }
};

/// Of the simdgroups' tables.
NATTEN_FN float sum_of_simdgroups(const NA_THREADGROUP float* tables, int simdgroups, int entry) {
  float sum = 0.0f;
  for (int s = 0; s < simdgroups; ++s) sum += tables[s * (16 * NA_STAGE_COLUMNS) + entry];
  return sum;
}

/// The entry of the simdgroup's first position, of those of its threads.
NATTEN_FN int first_entry(const NA_THREAD int (&entry)[2]) {
  return from_lane(entry[0], lane_of_pair(Lane{0, 0, 0}, 0));
}

}  // namespace natten
