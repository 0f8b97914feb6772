// The fused gradients on matrix units: as backward.h, in blocks of streamed positions.
namespace natten {

/// Gradient of the bias table on matrix units: after each tile the simdgroups' tables are added to the threadgroup's in
/// device memory.
struct MatrixBiasGradient {
  BiasGradient sums;
  SimdBiasSums of_simdgroup;
  NA_THREADGROUP float* tables;  ///< of all simdgroups
  bool inside[2];                ///< whether the thread's queries exist: others repeat the last one, at another entry

  NATTEN_FN void begin(const NA_THREAD Tile& tile, NA_DEVICE float* partials, NA_THREADGROUP float* scratch,
                       Lane lane) NA_THREAD {
    if (!NA_BIAS_GRADIENT) return;
    sums.begin(tile, partials, scratch);
    tables = scratch;
    of_simdgroup.begin(scratch, lane);
    NA_UNROLL for (int r = 0; r < 2; ++r) inside[r] = is_inside<true>(tile, r);
  }

  /// Of pairs that meet, whose bits are set in `met`.
  NATTEN_FN void add(const NA_THREAD float (&gradients)[NA_BLOCK / 8][4], unsigned met, const NA_THREAD int (&entry)[2],
                     const NA_THREADGROUP unsigned* words, const NA_THREAD Meeting& meeting, Lane lane) NA_THREAD {
    if (!NA_BIAS_GRADIENT) return;
#if NA_HAS_EXTRA
    if (meeting.is_extra) return;
#endif
    float added[NA_BLOCK / 8][4];
    NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
      NA_UNROLL for (int e = 0; e < 4; ++e) {
        added[i][e] = inside[e / 2] && ((met >> (4 * i + e)) & 1u) != 0 ? gradients[i][e] : 0.0f;
      }
    }
    of_simdgroup.add(added, first_entry(entry), words + NA_CHUNK, lane);
  }

  NATTEN_FN void end(Lane lane) NA_THREAD {
    if (!NA_BIAS_GRADIENT) return;
    barrier();
    for (int i = lane.index; i < NA_RPB_SIZE; i += NA_THREADS) {
      sums.partial[i] += sum_of_simdgroups(tables, NA_THREADS / 32, i);
    }
    barrier();
  }
};

/// With or without the gradient of A, and that of B.
template <bool kQueries, bool kSumsA, bool kSumsB, class HeldA, class HeldB, class StreamedA, class StreamedB,
          class LseP, class DeltaP, class BiasP>
struct MatrixBackward {
  View<StreamedA> from_a;
  View<StreamedB> from_b;
  View<LseP> lse;
  View<DeltaP> delta;
  Lane lane;
  NA_THREADGROUP NA_A_TYPE* rows_a;
  NA_THREADGROUP NA_B_TYPE* rows_b;
  NA_THREADGROUP unsigned* words;
  NA_THREADGROUP Offset* offsets;
  BiasP rpb;
  NA_THREADGROUP float* bias;
  MatrixBiasGradient bias_gradient;
  Scale scale;
  int bias_entry[2];
  NA_THREADGROUP float* lses;  ///< of streamed queries, in powers of two; their deltas follow
  HeldRows<NA_A_TYPE, NA_A_CHANNELS, HeldA> held_a;
  HeldRows<NA_B_TYPE, NA_B_CHANNELS, HeldB> held_b;
  float held_lse[2];
  float held_delta[2];
  float sum_a[NA_A_WIDTH / 8][4];
  float sum_b[NA_B_WIDTH / 8][4];

  NATTEN_FN void load_scalars(int i, const NA_THREAD int* position) NA_THREAD {
    if (kQueries) return;
    const float lse_of_query = number_at(lse, position);
    lses[i] = backward_lse(lse_of_query);
    lses[NA_CHUNK + i] = backward_delta(number_at(delta, position), lse_of_query);
  }

  template <bool kCareful>
  NATTEN_FN void block(const NA_THREAD Meeting& meeting, int row, bool all) NA_THREAD {
    float weights[NA_BLOCK / 8][4], gradients[NA_BLOCK / 8][4];
    clear_blocks(weights);
    clear_blocks(gradients);
    multiply_rows<NA_A_PITCH>(weights, held_a, rows_a + row * NA_A_PITCH, lane);
    if (kSumsA) multiply_rows<NA_B_PITCH>(gradients, held_b, rows_b + row * NA_B_PITCH, lane);
    Scale to_logits = scale;
    const unsigned met = mask_products(weights, to_logits, rpb, bias, bias_entry, meeting, words + row, lane, all);
    NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
      NA_UNROLL for (int e = 0; e < 4; ++e) {
        const int streamed = row + 8 * i + 2 * lane.pair + e % 2;
        const float lse_of_query = kQueries ? held_lse[e / 2] : lses[streamed];
        weights[i][e] = exp2_of(weights[i][e] * to_logits.factor - lse_of_query);
        gradients[i][e] =
            weights[i][e] * (gradients[i][e] - (kQueries ? held_delta[e / 2] : lses[NA_CHUNK + streamed]));
      }
    }
    // Done again with kCareful, a tile has the same logit gradients: they do not depend on what does not meet.
    if (kSumsA && !kCareful) bias_gradient.add(gradients, met, bias_entry, words + row, meeting, lane);
    if (kSumsB) add_weighted<kCareful, NA_B_PITCH>(sum_b, weights, met, rows_b + row * NA_B_PITCH, lane);
    if (kSumsA) add_weighted<kCareful, NA_A_PITCH>(sum_a, gradients, met, rows_a + row * NA_A_PITCH, lane);
  }
};

template <bool kQueries, bool kSumsA, bool kSumsB, class HeldA, class HeldB, class StreamedA, class StreamedB,
          class LseP, class DeltaP, class BiasP, class TA, class TB>
NATTEN_FN void sum_gradients(Tensor<HeldA> held_a, Tensor<HeldB> held_b, Tensor<StreamedA> streamed_a,
                             Tensor<StreamedB> streamed_b, Tensor<LseP> lse, Tensor<DeltaP> delta, BiasP rpb,
                             NA_DEVICE TA* to_a, NA_DEVICE TB* to_b, NA_DEVICE float* drpb,
                             NA_THREADGROUP NA_A_TYPE* rows_a, NA_THREADGROUP NA_B_TYPE* rows_b,
                             NA_THREADGROUP float* scratch, NA_THREADGROUP unsigned* words,
                             NA_THREADGROUP Offset* offsets, NA_THREADGROUP float* bias, Site site, float scale) {
  MatrixBackward<kQueries, kSumsA, kSumsB, HeldA, HeldB, StreamedA, StreamedB, LseP, DeltaP, BiasP> body;
  body.lane = lane_of(site.thread_index);
  body.words = words;
  body.offsets = offsets;
  const Tile tile = tile_of<kQueries>(matrix_site(site, body.lane));
  clear_blocks(body.sum_a);
  clear_blocks(body.sum_b);
  body.bias_gradient.begin(tile, drpb, scratch, body.lane);
  if (!tile.empty) {
    const Items items = items_of<kQueries>(tile);
    const Region region = region_of(tile);
    const Meeting meeting = meeting_of<kQueries>(tile, items, region);
    const Indexed held = kQueries ? Indexed::query_tokens : Indexed::keys;
    body.held_a.load(view(held_a, held, tile, site.head), items, body.lane);
    body.held_b.load(view(held_b, kQueries ? Indexed::queries : held, tile, site.head), items, body.lane);
    body.scale = scale_of(scale);
    body.rows_a = rows_a;
    body.rows_b = rows_b;
    body.lses = scratch;
    body.bias = bias;
    if (NA_HAS_RPB) bias_entries<kQueries>(body.bias_entry, tile, items);
    bool careful = false;
    while (true) {
      const int heads = kQueries ? 1 : NA_HEAD_GROUP;  // of queries, for one of the site's
      for (int h = site.head * heads; h < (site.head + 1) * heads; ++h) {
        const int streamed = kQueries ? h / NA_HEAD_GROUP : h;
        body.from_a = view(streamed_a, kQueries ? Indexed::keys : Indexed::query_tokens, tile, streamed);
        body.from_b = view(streamed_b, kQueries ? Indexed::keys : Indexed::queries, tile, streamed);
        body.lse = view(lse, Indexed::queries, tile, h);
        body.delta = view(delta, Indexed::queries, tile, h);
        body.rpb = rpb + Offset(h) * NA_RPB_SIZE;
        if (NA_HAS_RPB) {
          if (sweeps_again<kQueries>()) barrier();  // all have read the table before
          stage_bias(bias, body.rpb, body.lane.index);
        }
        NA_UNROLL for (int r = 0; r < 2; ++r) {
          if (!kQueries) continue;
          const float lse_of_query = number_at(body.lse, items.position[r]);
          body.held_lse[r] = backward_lse(lse_of_query);
          body.held_delta[r] = backward_delta(number_at(body.delta, items.position[r]), lse_of_query);
        }
#if NA_HAS_EXTRA
        if (careful) {
          sweep_extra<true>(body, streamed_a, streamed_b, tile, streamed);
        } else {
          sweep_extra<false>(body, streamed_a, streamed_b, tile, streamed);
        }
#endif
        if (careful) {
          sweep_region<kQueries, true>(body, tile, region, meeting);
        } else {
          sweep_region<kQueries, false>(body, tile, region, meeting);
        }
      }
      if (careful) break;
      if (!any_of_threadgroup(!all_finite(body.sum_a) || !all_finite(body.sum_b), words, body.lane.index)) break;
      careful = true;
      clear_blocks(body.sum_a);
      clear_blocks(body.sum_b);
    }
  }
  body.bias_gradient.end(body.lane);
  float rows_of_a[2][NA_A_HELD], rows_of_b[2][NA_B_HELD];
  if (kSumsA) {
    to_rows(rows_of_a, body.sum_a, body.lane.pair);
    store_items<kQueries, kQueries, NA_A_CHANNELS, NA_STORED>(to_a, rows_of_a, tile, scale);
  }
  if (!kSumsB) return;
  to_rows(rows_of_b, body.sum_b, body.lane.pair);
  store_items<kQueries, false, NA_B_CHANNELS, NA_STORED>(to_b, rows_of_b, tile, 1.0f);
}

template <bool kQueries, class HeldA, class HeldB, class StreamedA, class StreamedB, class LseP, class DeltaP,
          class BiasP, class TA, class TB>
NATTEN_FN void attention_backward(Tensor<HeldA> held_a, Tensor<HeldB> held_b, Tensor<StreamedA> streamed_a,
                                  Tensor<StreamedB> streamed_b, Tensor<LseP> lse, Tensor<DeltaP> delta, BiasP rpb,
                                  NA_DEVICE TA* to_a, NA_DEVICE TB* to_b, NA_DEVICE float* drpb,
                                  NA_THREADGROUP NA_A_TYPE* rows_a, NA_THREADGROUP NA_B_TYPE* rows_b,
                                  NA_THREADGROUP float* scratch, NA_THREADGROUP unsigned* words,
                                  NA_THREADGROUP Offset* offsets, NA_THREADGROUP float* bias, Site site, float scale) {
#if NA_WIDE  // registers have room for one sum
  if (!kQueries) {
    sum_gradients<kQueries, false, true>(held_a, held_b, streamed_a, streamed_b, lse, delta, rpb, to_a, to_b, drpb,
                                         rows_a, rows_b, scratch, words, offsets, bias, site, scale);
  }
  sum_gradients<kQueries, true, false>(held_a, held_b, streamed_a, streamed_b, lse, delta, rpb, to_a, to_b, drpb,
                                       rows_a, rows_b, scratch, words, offsets, bias, site, scale);
#else
  sum_gradients<kQueries, true, !kQueries>(held_a, held_b, streamed_a, streamed_b, lse, delta, rpb, to_a, to_b, drpb,
                                           rows_a, rows_b, scratch, words, offsets, bias, site, scale);
#endif
}

}  // namespace natten
