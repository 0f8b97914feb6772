// The fused forward on matrix units: as forward.h, in blocks of keys.
namespace natten {

template <class QueryP, class KeyP, class ValueP, class BiasP>
struct MatrixForward {
  View<KeyP> from_a;
  View<ValueP> from_b;
  Lane lane;
  NA_THREADGROUP NA_A_TYPE* rows_a;
  NA_THREADGROUP NA_B_TYPE* rows_b;
  NA_THREADGROUP unsigned* words;
  NA_THREADGROUP Offset* offsets;
  BiasP rpb;
  NA_THREADGROUP float* bias;
  Scale scale;
  int bias_entry[2];  ///< of the region's first key
  HeldRows<NA_A_TYPE, NA_A_CHANNELS, QueryP> query;
  float out[NA_B_WIDTH / 8][4];
  float maximum[2];
  float sum[2];  ///< of this thread's keys

  NATTEN_FN void clear() NA_THREAD {
    clear_blocks(out);
    NA_UNROLL for (int r = 0; r < 2; ++r) {
      maximum[r] = -3.4e38f;  // finite, so that a block without keys gives exp2(-inf)
      sum[r] = 0.0f;
    }
  }
  NATTEN_FN void load_scalars(int, const NA_THREAD int (&)[3]) NA_THREAD {}

  template <bool kCareful>
  NATTEN_FN void block(const NA_THREAD Meeting& meeting, int row, bool all) NA_THREAD {
    float weights[NA_BLOCK / 8][4];
    clear_blocks(weights);
    multiply_rows<NA_A_PITCH>(weights, query, rows_a + row * NA_A_PITCH, lane);
    Scale to_logits = scale;
    const unsigned met = mask_products(weights, to_logits, rpb, bias, bias_entry, meeting, words + row, lane, all);
    float highest[2] = {-NA_INFINITY, -NA_INFINITY};  // of products or, where the scale is negative, of their negatives
    if (to_logits.factor > 0.0f) {
      NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
        NA_UNROLL for (int e = 0; e < 4; ++e) highest[e / 2] = greatest_number(highest[e / 2], weights[i][e]);
      }
    } else {
      NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
        NA_UNROLL for (int e = 0; e < 4; ++e) highest[e / 2] = greatest_number(highest[e / 2], -weights[i][e]);
      }
    }
    // The maximum is one that was true some blocks ago, as long as no weight exceeds kMostWeight: then sums need not
    // shrink.
    constexpr float kMostWeight = 8.0f;  // as a power of two
    const float positive = greater(to_logits.factor, -to_logits.factor);
    NA_UNROLL for (int r = 0; r < 2; ++r) highest[r] = greatest_number(maximum[r], positive * highest[r]);
    if (any_lane(highest[0] > maximum[0] + kMostWeight || highest[1] > maximum[1] + kMostWeight)) {
      NA_UNROLL for (int r = 0; r < 2; ++r) {
        highest[r] = greatest_of_row(highest[r]);
        const float shrunk = exp2_of(maximum[r] - highest[r]);
        maximum[r] = highest[r];
        sum[r] *= shrunk;
        NA_UNROLL for (int j = 0; j < NA_B_WIDTH / 8; ++j) {
          out[j][2 * r] *= shrunk;
          out[j][2 * r + 1] *= shrunk;
        }
      }
    }
    NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
      NA_UNROLL for (int e = 0; e < 4; ++e) {
        weights[i][e] = exp2_of(weights[i][e] * to_logits.factor - maximum[e / 2]);
        sum[e / 2] += weights[i][e];
      }
    }
    add_weighted<kCareful, NA_B_PITCH>(out, weights, met, rows_b + row * NA_B_PITCH, lane);
  }
};

template <class QueryP, class KeyP, class ValueP, class BiasP, class OutT>
NATTEN_FN void attention_forward(Tensor<QueryP> query, Tensor<KeyP> key, Tensor<ValueP> value, BiasP rpb,
                                 NA_DEVICE OutT* out, NA_DEVICE float* lse, NA_THREADGROUP NA_A_TYPE* keys,
                                 NA_THREADGROUP NA_B_TYPE* values, NA_THREADGROUP unsigned* words,
                                 NA_THREADGROUP Offset* offsets, NA_THREADGROUP float* bias, Site site, float scale) {
  MatrixForward<QueryP, KeyP, ValueP, BiasP> body;
  body.lane = lane_of(site.thread_index);
  body.words = words;
  body.offsets = offsets;
  body.clear();
  const Tile tile = tile_of<true>(matrix_site(site, body.lane));
  if (!tile.empty) {
    const Items items = items_of<true>(tile);
    const Region region = region_of(tile);
    const Meeting meeting = meeting_of<true>(tile, items, region);
    body.query.load(view(query, Indexed::query_tokens, tile, site.head), items, body.lane);
    body.from_a = view(key, Indexed::keys, tile, site.head / NA_HEAD_GROUP);
    body.from_b = view(value, Indexed::keys, tile, site.head / NA_HEAD_GROUP);
    body.scale = scale_of(scale);
    body.rows_a = keys;
    body.rows_b = values;
    body.rpb = rpb + Offset(site.head) * NA_RPB_SIZE;
    body.bias = bias;
    if (NA_HAS_RPB) {
      bias_entries<true>(body.bias_entry, tile, items);
      stage_bias(bias, body.rpb, body.lane.index);
    }
#if NA_HAS_EXTRA
    sweep_extra<false>(body, key, value, tile, site.head / NA_HEAD_GROUP);
#endif
    sweep_region<true, false>(body, tile, region, meeting);
    if (any_of_threadgroup(!all_finite(body.out), words, body.lane.index)) {
      body.clear();
#if NA_HAS_EXTRA
      sweep_extra<true>(body, key, value, tile, site.head / NA_HEAD_GROUP);
#endif
      sweep_region<true, true>(body, tile, region, meeting);
    }
  }
  float out_rows[2][NA_B_HELD];
  to_rows(out_rows, body.out, body.lane.pair);
  NA_UNROLL for (int r = 0; r < 2; ++r) body.sum[r] = sum_row(body.sum[r]);
  store_softmax<NA_STORED>(out, lse, out_rows, body.maximum, body.sum, tile);
}

}  // namespace natten
