// The fused gradients of key and value. Query heads of a group are swept one after another.
namespace natten {

template <class QueryP, class LseP, class DoutP, class DeltaP, class BiasP>
struct BackwardKeyValue {
  StreamA<QueryP> queries;
  StreamB<DoutP> douts;
  View<LseP> lse;
  View<DeltaP> delta;
  BiasP rpb;
  NA_THREADGROUP float* lses;
  NA_THREADGROUP float* deltas;
  float key[NA_RUN][NA_A_SLICES * NA_VECTOR];
  float value[NA_RUN][NA_B_SLICES * NA_VECTOR];
  float dkey[NA_RUN][NA_A_SLICES * NA_VECTOR];
  float dvalue[NA_RUN][NA_B_SLICES * NA_VECTOR];

  NATTEN_FN void load(const NA_THREAD Tile& tile, Chunk chunk) {
    queries.load(tile, chunk);
    douts.load(tile, chunk);
    load_chunk_scalars(lses, lse, tile, chunk, NA_LOG2_E);
    load_chunk_scalars(deltas, delta, tile, chunk, 1.0f);
  }
  NATTEN_FN void begin_row(const NA_THREAD Tile&, Chunk) {}
  NATTEN_FN void end_row(const NA_THREAD Tile&, Row, Chunk) {}

  template <int kCount, bool kMasked>
  NATTEN_FN void batch(const NA_THREAD Tile& tile, const NA_THREAD Items& items, Batch batch,
                       const NA_THREAD Mask& mask) {
    NA_UNROLL_TWICE for (int j = 0; j < kCount; ++j) {
      const int slot = slot_of<kMasked>(batch, j);
      float q[NA_A_SLICES * NA_VECTOR], d[NA_B_SLICES * NA_VECTOR];
      load_row<NA_A_SLICES>(q, queries.rows + slot * NA_A_PITCH, tile.lane);
      load_row<NA_B_SLICES>(d, douts.rows + slot * NA_B_PITCH, tile.lane);
      float logits[NA_RUN], products[NA_RUN];
      NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
        if (!is_in_use<kMasked>(mask, r)) continue;
        logits[r] = sum_lanes(dot(key[r], q));
        products[r] = sum_lanes(dot(value[r], d));
      }
      NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
        if (!meets<kMasked>(mask, r, j)) continue;
        if (NA_HAS_RPB) {
          logits[r] +=
              NA_LOG2_E * float(rpb[rpb_entry(tile, query_place(tile, 0, batch.p0), query_place(tile, 1, batch.p1),
                                              query_place(tile, 2, batch.x + j), items.place[r][0], items.place[r][1],
                                              items.place[r][2])]);
        }
        const float weight = exp2_of(logits[r] - lses[slot]);
        add_scaled(dvalue[r], weight, d);
        add_scaled(dkey[r], weight * (products[r] - deltas[slot]), q);
      }
    }
  }
};

template <class QueryP, class KeyP, class ValueP, class LseP, class DoutP, class DeltaP, class BiasP, class KeyT,
          class ValueT>
NATTEN_FN void attention_backward_key_value(Tensor<QueryP> query, Tensor<KeyP> key, Tensor<ValueP> value,
                                            Tensor<LseP> lse, Tensor<DoutP> dout, Tensor<DeltaP> delta, BiasP rpb,
                                            NA_DEVICE KeyT* dkey, NA_DEVICE ValueT* dvalue,
                                            NA_THREADGROUP NA_A_TYPE* queries, NA_THREADGROUP NA_B_TYPE* douts,
                                            NA_THREADGROUP float* lses, NA_THREADGROUP float* deltas, Site site) {
  const Tile tile = tile_of<false>(site);
  BackwardKeyValue<QueryP, LseP, DoutP, DeltaP, BiasP> body;
  clear(body.dkey);
  clear(body.dvalue);
  if (!tile.empty) {
    const Items items = items_of<false>(tile);
    const View<KeyP> keys = view(key, Indexed::keys, tile, site.head);
    const View<ValueP> values = view(value, Indexed::keys, tile, site.head);
    NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
      load_slices<NA_A_CHANNELS, NA_A_SLICES>(body.key[r], keys, items.position[r], tile.lane, NA_SCALE * NA_LOG2_E);
      load_slices<NA_B_CHANNELS, NA_B_SLICES>(body.value[r], values, items.position[r], tile.lane, 1.0f);
    }
    body.queries.rows = queries;
    body.douts.rows = douts;
    body.lses = lses;
    body.deltas = deltas;
    for (int h = site.head * NA_HEAD_GROUP; h < (site.head + 1) * NA_HEAD_GROUP; ++h) {
      body.queries.from = view(query, Indexed::query_tokens, tile, h);
      body.douts.from = view(dout, Indexed::queries, tile, h);
      body.lse = view(lse, Indexed::queries, tile, h);
      body.delta = view(delta, Indexed::queries, tile, h);
      body.rpb = rpb + Offset(h) * NA_RPB_SIZE;
      sweep(body, tile, items);
    }
  }
  store_tokens<NA_A_CHANNELS, NA_A_SLICES>(dkey, body.dkey, tile, NA_SCALE);
  store_tokens<NA_B_CHANNELS, NA_B_SLICES>(dvalue, body.dvalue, tile, 1.0f);
}

}  // namespace natten
