// The relative position bias beside warpgroup instructions. Its tables are staged in shared memory with zeros around
// them, which are the entries of pairs of a tile that do not meet.
namespace natten {

constexpr int kBiasTable = NA_RPB_SIZE + 2 * NA_BIAS_MARGIN;  ///< entries of a head

/// Stages the bias of the threadgroup's heads of queries, from `rpb` on, in powers of two. Tells whether one of them is
/// so large that penalties are none. Called by all threads, in place of a __syncthreads().
NATTEN_FN bool stage_bias_tables(const Stages& stages, const float* rpb, float factor) {
#if NA_HAS_RPB
  const float most = NA_MASK == kMaskUnits ? NA_LEAST_LOGIT * -0.25f * fabsf(factor) : NA_INFINITY;
  bool large = false;
  for (int i = threadIdx.x; i < NA_STAGED_BIAS; i += NA_THREADS) {
    const int entry = i % kBiasTable - NA_BIAS_MARGIN;
    float bias = 0.0f;
    if (entry >= 0 && entry < NA_RPB_SIZE) bias = NA_LOG2_E * rpb[i / kBiasTable * NA_RPB_SIZE + entry];
    stages.bias()[i] = bias;
    large = large || (bias != -NA_INFINITY && !(fabsf(bias) < most));
  }
  return any_of_threadgroup(large, nullptr, 0);
#else
  __syncthreads();
  return false;
#endif
}

/// Where a consumer's thread finds what its pairs have.
struct WarpgroupBias {
  const float* table;  ///< from the entry on of the thread's first position with the region's first one

  template <bool kQueries>
  NATTEN_FN void begin(const Stages& stages, const Tile& tile, const Items& items) {
    if (!NA_HAS_RPB) return;
    int entry[2];
    bias_entries<kQueries>(entry, tile, items);
    table = stages.bias() + NA_BIAS_MARGIN + entry[0];
  }
  /// Products to logits in powers of two. Additional tokens have no bias.
  template <bool kQueries, bool kExtra>
  NATTEN_FN void to_logits(float (&products)[NA_BLOCK / 8][4], float factor, unsigned offsets) const {
    if (!NA_HAS_RPB) return;
    NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
      const float2 n = kExtra ? float2{0.0f, 0.0f} : load_numbers(offsets + 32 * i + hardware_lane() % 4 * 8);
      NA_UNROLL for (int e = 0; e < 4; ++e) {
        const int at = __float_as_int(e % 2 == 0 ? n.x : n.y) + (e < 2 ? 0 : bias_of_held<kQueries>(0, 1));
        products[i][e] = products[i][e] * factor + (kExtra ? 0.0f : table[at]);
      }
    }
  }
};

/// Of the pair of item r with a streamed position.
template <bool kQueries>
NATTEN_FN int bias_entry_of(const Tile& tile, const Items& items, int r, const int (&p)[3]) {
  return rpb_entry(tile, pair_of<kQueries>(tile, items, Batch{p[0], p[1], p[2], 0, 0, 0}, r, 0));
}

/// The gradient of the bias: each warp sums what its queries have in all tiles of the threadgroup. Logit gradients that
/// are not finite may be of pairs that do not meet, and are left to what is done again then.
struct WarpgroupBiasGradient {
  SimdBiasSums sums;
  int first;      ///< entry of the warp's first query with the region's first key
  bool is_plain;  ///< whether what does not meet has penalties

  NATTEN_FN void begin(const Stages& stages, bool plain) {
    if (!NA_BIAS_GRADIENT) return;
    is_plain = plain;
    sums.begin(stages.sums(), lane_of(threadIdx.x));
  }
  NATTEN_FN void hold(const Tile& tile, const Items& items) {
    if (!NA_BIAS_GRADIENT) return;
    int entry[2];
    bias_entries<true>(entry, tile, items);
    first = first_entry(entry);
  }
  /// Queries that do not exist have gradients of 0.
  NATTEN_FN void add(const float (&gradients)[NA_BLOCK / 8][4], const unsigned char* at) {
    if (!NA_BIAS_GRADIENT || !is_plain) return;
    float added[NA_BLOCK / 8][4], zeros[2] = {0.0f, 0.0f};
    NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
      NA_UNROLL for (int e = 0; e < 4; ++e) {
        added[i][e] = gradients[i][e];
        zeros[e % 2] += 0.0f * gradients[i][e];
      }
    }
    if (any_lane(zeros[0] + zeros[1] != 0.0f)) {
      pin(added);  // or the compiler makes it selects, without a branch
      NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
        NA_UNROLL for (int e = 0; e < 4; ++e) added[i][e] = added[i][e] - added[i][e] == 0.0f ? added[i][e] : 0.0f;
      }
    }
    sums.add(added, first, reinterpret_cast<const unsigned*>(at), lane_of(threadIdx.x));
  }
  /// Of one pair of each row, if it meets (`on`), among what is done again: what add() has left.
  NATTEN_FN void add_again(float gradient, int entry, bool on) {
    if (!NA_BIAS_GRADIENT) return;
    on = on && (!is_plain || gradient - gradient != 0.0f) && hardware_lane() % 4 == 0;
    NA_UNROLL_NONE for (int row = 0; row < 8; ++row) {
      if (on && hardware_lane() / 4 == row) sums.table[entry] += gradient;
      __syncwarp();
    }
  }
  /// Once all tiles are done. Called by all consumers.
  NATTEN_FN static void store(const Stages& stages, float* partials, int head, int heads) {
    if (!NA_BIAS_GRADIENT) return;
    named_barrier(6, 128 * NA_WARPGROUPS);
    float* const to = partials + (Offset(blockIdx.x) * heads + head) * NA_RPB_SIZE;
    for (int i = threadIdx.x; i < NA_RPB_SIZE; i += 128 * NA_WARPGROUPS) {
      to[i] = sum_of_simdgroups(stages.sums(), 4 * NA_WARPGROUPS, i);
    }
  }
};

}  // namespace natten
