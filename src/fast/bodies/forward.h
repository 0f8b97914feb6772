// The fused forward: threads hold queries, keys and values stream past. Online softmax, in powers of two.
namespace natten {

template <class KeyP, class ValueP, class BiasP>
struct Forward {
  StreamA<KeyP> keys;
  StreamB<ValueP> values;
  BiasP rpb;
  float query[NA_RUN][NA_A_HELD];
  float out[NA_RUN][NA_B_HELD];
  float maximum[NA_RUN];
  float sum[NA_RUN];

  NATTEN_FN void load(const NA_THREAD Tile& tile, Chunk chunk) NA_THREAD {
    keys.load(tile, chunk);
    values.load(tile, chunk);
  }
  NATTEN_FN void begin_row(const NA_THREAD Tile&, Chunk) NA_THREAD {}
  NATTEN_FN void end_row(const NA_THREAD Tile&, Row, Chunk) NA_THREAD {}

  template <int kCount, bool kMasked>
  NATTEN_FN void batch(const NA_THREAD Tile& tile, const NA_THREAD Items& items, Batch batch,
                       const NA_THREAD Mask& mask) NA_THREAD {
    float weights[NA_RUN][NA_BATCH];
    dot_batch<kCount, kMasked>(weights, query, keys, batch, mask, tile.lane);
    if (NA_HAS_RPB) add_bias<kCount, kMasked>(weights, rpb, tile, items, batch, mask, NA_LOG2_E);
    bool grown = false;
    float highest[NA_RUN];
    NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
      highest[r] = maximum[r];
      NA_UNROLL for (int j = 0; j < kCount; ++j) {
        if (!meets<kMasked>(mask, r, j)) weights[r][j] = -NA_INFINITY;
        highest[r] = greater(highest[r], weights[r][j]);
      }
      grown = grown || highest[r] > maximum[r];
    }
    if (any_lane(grown)) {  // rare after the first batches
      NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
        const float factor = exp2_of(maximum[r] - highest[r]);
        maximum[r] = highest[r];
        sum[r] *= factor;
        NA_UNROLL for (int i = 0; i < NA_B_HELD; ++i) out[r][i] *= factor;
      }
    }
    NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
      NA_UNROLL for (int j = 0; j < kCount; ++j) {
        weights[r][j] = exp2_of(weights[r][j] - maximum[r]);
        sum[r] += weights[r][j];
      }
    }
    add_batch<kCount, kMasked>(out, weights, values, batch, mask, tile.lane);
  }
};

template <class Query, class KeyP, class ValueP, class BiasP, class OutT>
NATTEN_FN void attention_forward(Query query, Tensor<KeyP> key, Tensor<ValueP> value, BiasP rpb, NA_DEVICE OutT* out,
                                 NA_DEVICE float* lse, NA_THREADGROUP NA_A_TYPE* keys, NA_THREADGROUP NA_B_TYPE* values,
                                 Site site, float scale) {
  const Tile tile = tile_of<true>(site);
  Forward<KeyP, ValueP, BiasP> body;
  clear(body.out);
  NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
    body.maximum[r] = -3.4e38f;  // finite, so that a batch without keys gives exp2(-inf)
    body.sum[r] = 0.0f;
  }
  if (!tile.empty) {
    const Items items = items_of<true>(tile);
    load_items<NA_A_CHANNELS>(body.query, view(query, Indexed::query_tokens, tile, site.head), items, tile.lane,
                              scale * NA_LOG2_E);
    body.keys.from = view(key, Indexed::keys, tile, site.head / NA_HEAD_GROUP);
    body.values.from = view(value, Indexed::keys, tile, site.head / NA_HEAD_GROUP);
    body.rpb = rpb + Offset(site.head) * NA_RPB_SIZE;
    body.keys.rows = keys;
    body.values.rows = values;
#if NA_HAS_EXTRA
    sweep_extra(body, body.keys.from, body.values.from, key, value, tile, items, site.head / NA_HEAD_GROUP);
#endif
    sweep(body, tile, items);
  }
  store_softmax(out, lse, body.out, body.maximum, body.sum, tile);
}

}  // namespace natten
