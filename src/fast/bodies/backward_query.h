// The fused gradient of query, and of the relative position bias: threads hold queries, keys and values stream past.
namespace natten {

/// Gradient of query: probabilities again from the saved lse, logit gradients p * (dout . value - delta).
template <class KeyP, class ValueP, class BiasP>
struct BackwardQuery {
  StreamA<KeyP> keys;
  StreamB<ValueP> values;
  BiasP rpb;
  BiasGradient bias_gradient;
  float query[NA_RUN][NA_A_SLICES * NA_VECTOR];
  float dout[NA_RUN][NA_B_SLICES * NA_VECTOR];
  float dquery[NA_RUN][NA_A_SLICES * NA_VECTOR];
  float lse[NA_RUN];
  float delta[NA_RUN];

  NATTEN_FN void load(const NA_THREAD Tile& tile, Chunk chunk) {
    keys.load(tile, chunk);
    values.load(tile, chunk);
  }
  NATTEN_FN void begin_row(const NA_THREAD Tile& tile, Chunk chunk) {
    if (NA_HAS_RPB) bias_gradient.begin_row(tile, chunk);
  }
  NATTEN_FN void end_row(const NA_THREAD Tile& tile, Row at, Chunk chunk) {
    if (NA_HAS_RPB) bias_gradient.end_row(tile, at, chunk);
  }

  template <int kCount, bool kMasked>
  NATTEN_FN void batch(const NA_THREAD Tile& tile, const NA_THREAD Items& items, Batch batch,
                       const NA_THREAD Mask& mask) {
    int entry[NA_RUN];
    NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
      entry[r] = rpb_entry(tile, items.place[r][0], items.place[r][1], items.place[r][2], batch.p0, batch.p1, batch.x);
    }
    // No softmax to wait for: a key is in registers for its dot product and for its share of the sum.
    NA_UNROLL_TWICE for (int j = 0; j < kCount; ++j) {
      const int slot = slot_of<kMasked>(batch, j);
      float k[NA_A_SLICES * NA_VECTOR], v[NA_B_SLICES * NA_VECTOR];
      load_row<NA_A_SLICES>(k, keys.rows + slot * NA_A_PITCH, tile.lane);
      load_row<NA_B_SLICES>(v, values.rows + slot * NA_B_PITCH, tile.lane);
      float logits[NA_RUN], products[NA_RUN];
      NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
        if (!is_in_use<kMasked>(mask, r)) continue;
        logits[r] = sum_lanes(dot(query[r], k));
        products[r] = sum_lanes(dot(dout[r], v));
      }
      NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
        if (!meets<kMasked>(mask, r, j)) continue;
        if (NA_HAS_RPB) logits[r] += NA_LOG2_E * float(rpb[entry[r] + j]);
        const float gradient = exp2_of(logits[r] - lse[r]) * (products[r] - delta[r]);
        if (NA_HAS_RPB) bias_gradient.stage(gradient, tile, batch, r, j);
        add_scaled(dquery[r], gradient, k);
      }
    }
  }
};

template <class QueryP, class KeyP, class ValueP, class OutP, class LseP, class DoutP, class DlseP, class BiasP,
          class T>
NATTEN_FN void attention_backward_query(Tensor<QueryP> query, Tensor<KeyP> key, Tensor<ValueP> value, Tensor<OutP> out,
                                        Tensor<LseP> lse, Tensor<DoutP> dout, Tensor<DlseP> dlse, BiasP rpb,
                                        NA_DEVICE T* dquery, NA_DEVICE float* drpb, NA_THREADGROUP NA_A_TYPE* keys,
                                        NA_THREADGROUP NA_B_TYPE* values, NA_THREADGROUP float* staged, Site site) {
  const Tile tile = tile_of<true>(site);
  BackwardQuery<KeyP, ValueP, BiasP> body;
  clear(body.dquery);
  if (NA_HAS_RPB) {
    body.bias_gradient.staged = staged;
    body.bias_gradient.partial = drpb + (Offset(site.group) * site.heads + site.head) * NA_RPB_SIZE;
    body.bias_gradient.begin(tile);
  }
  if (!tile.empty) {
    const Items items = items_of<true>(tile);
    const View<QueryP> queries = view(query, Indexed::query_tokens, tile, site.head);
    const View<OutP> outs = view(out, Indexed::queries, tile, site.head);
    const View<DoutP> douts = view(dout, Indexed::queries, tile, site.head);
    const View<LseP> lses = view(lse, Indexed::queries, tile, site.head);
    const View<DlseP> dlses = view(dlse, Indexed::queries, tile, site.head);
    NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
      const NA_THREAD int* const position = items.position[r];
      float forward[NA_B_SLICES * NA_VECTOR];
      load_slices<NA_A_CHANNELS, NA_A_SLICES>(body.query[r], queries, position, tile.lane, NA_SCALE * NA_LOG2_E);
      load_slices<NA_B_CHANNELS, NA_B_SLICES>(body.dout[r], douts, position, tile.lane, 1.0f);
      load_slices<NA_B_CHANNELS, NA_B_SLICES>(forward, outs, position, tile.lane, 1.0f);
      body.delta[r] = sum_lanes(dot(forward, body.dout[r])) - number_at(dlses, position);
      body.lse[r] = NA_LOG2_E * number_at(lses, position);
    }
    body.keys.from = view(key, Indexed::keys, tile, site.head / NA_HEAD_GROUP);
    body.values.from = view(value, Indexed::keys, tile, site.head / NA_HEAD_GROUP);
    body.rpb = rpb + Offset(site.head) * NA_RPB_SIZE;
    body.keys.rows = keys;
    body.values.rows = values;
    sweep(body, tile, items);
  }
  NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
    if (!is_stored<true>(tile, r)) continue;
    finish(body.dquery[r], is_inside<true>(tile, r), NA_SCALE);
    store_query_gradient<NA_A_CHANNELS, NA_A_SLICES>(dquery, body.dquery[r], tile, r);
  }
}

}  // namespace natten
