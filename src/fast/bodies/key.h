// Kernels whose threads hold keys while the queries that attend them stream past: a gather over the inverse window, so
// every sum has one owner and one order. Heads of a group are swept one after another.
namespace natten {

/// Offset of a token's row in a dense [B, L0, L1, L2, heads, channels] array.
NATTEN_FN Offset token_offset(const NA_THREAD Tile& tile, Extent full, int batch, int head, int heads, int channels,
                              int item) {
  Offset row = batch;
  NA_UNROLL for (int a = 0; a < 3; ++a) row = row * full.v[a] + index_of<false>(tile, item, a);
  return (row * heads + head) * channels;
}

NATTEN_FN bool is_token(const NA_THREAD Tile& tile, Extent full, int item) {
  bool inside = true;
  NA_UNROLL for (int a = 0; a < 3; ++a) inside = inside && index_of<false>(tile, item, a) < full.v[a];
  return inside;
}

NATTEN_FN int query_place(const NA_THREAD Tile& tile, int a, int query) {
  return tile.groups[a].first_place + query * tile.axes[a].step;
}

/// Stores what is inside the sample, and 0 past its end.
template <int kChannels, int kSlices, class T>
NATTEN_FN void store_tokens(NA_DEVICE T* to, NA_THREAD float (&from)[NA_RUN][kSlices * NA_VECTOR],
                            const NA_THREAD Tile& tile, Extent full, int batch, int head, int heads, float factor) {
  NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
    if (!is_token(tile, full, r)) continue;
    const bool inside = is_inside<false>(tile, r);
    NA_UNROLL for (int i = 0; i < kSlices * NA_VECTOR; ++i) from[r][i] = inside ? factor * from[r][i] : 0.0f;
    store_slices<kChannels, kSlices>(to + token_offset(tile, full, batch, head, heads, kChannels, r), from[r],
                                     tile.lane);
  }
}

template <class QueryP, class LseP, class DoutP, class DeltaP, class BiasP>
struct BackwardKeyValue {
  View<QueryP> query;
  View<DoutP> dout;
  View<LseP> lse;
  View<DeltaP> delta;
  BiasP rpb;
  NA_THREADGROUP NA_A_TYPE* queries;
  NA_THREADGROUP NA_B_TYPE* douts;
  NA_THREADGROUP float* lses;
  NA_THREADGROUP float* deltas;
  float key[NA_RUN][NA_A_SLICES * NA_VECTOR];
  float value[NA_RUN][NA_B_SLICES * NA_VECTOR];
  float dkey[NA_RUN][NA_A_SLICES * NA_VECTOR];
  float dvalue[NA_RUN][NA_B_SLICES * NA_VECTOR];

  NATTEN_FN void load(const NA_THREAD Tile& tile, Chunk chunk) {
    load_chunk<NA_A_CHANNELS, NA_A_SLICES, NA_A_PITCH>(queries, query, tile, chunk);
    load_chunk<NA_B_CHANNELS, NA_B_SLICES, NA_B_PITCH>(douts, dout, tile, chunk);
    load_chunk_scalars(lses, lse, tile, chunk, NA_LOG2_E);
    load_chunk_scalars(deltas, delta, tile, chunk, 1.0f);
  }
  NATTEN_FN void begin_row(const NA_THREAD Tile&, Chunk) {}
  NATTEN_FN void end_row(const NA_THREAD Tile&, Row, Chunk) {}

  template <bool kMasked>
  NATTEN_FN void batch(const NA_THREAD Tile& tile, const NA_THREAD Items& items, Batch batch,
                       const NA_THREAD Mask& mask) {
    NA_UNROLL_TWICE for (int j = 0; j < NA_BATCH; ++j) {
      const int slot = slot_of<kMasked>(batch, j);
      float q[NA_A_SLICES * NA_VECTOR], d[NA_B_SLICES * NA_VECTOR];
      load_row<NA_A_SLICES>(q, queries + slot * NA_A_PITCH, tile.lane);
      load_row<NA_B_SLICES>(d, douts + slot * NA_B_PITCH, tile.lane);
      float logits[NA_RUN], products[NA_RUN];
      NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
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
                                            NA_THREADGROUP float* lses, NA_THREADGROUP float* deltas, Extent full,
                                            Extent lengths, int tile_index, int batch, int head, int heads,
                                            int thread_index) {
  const Tile tile = locate_tile<false>(tile_index, thread_index, full, lengths);
  BackwardKeyValue<QueryP, LseP, DoutP, DeltaP, BiasP> body;
  NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
    NA_UNROLL for (int i = 0; i < NA_A_SLICES * NA_VECTOR; ++i) body.dkey[r][i] = 0.0f;
    NA_UNROLL for (int i = 0; i < NA_B_SLICES * NA_VECTOR; ++i) body.dvalue[r][i] = 0.0f;
  }
  if (!tile.empty) {
    const Items items = items_of<false>(tile);
    const View<KeyP> keys = view(key, Indexed::keys, tile, batch, head);
    const View<ValueP> values = view(value, Indexed::keys, tile, batch, head);
    NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
      const int p0 = items.position[r][0], p1 = items.position[r][1], p2 = items.position[r][2];
      load_slices<NA_A_CHANNELS, NA_A_SLICES>(body.key[r], keys, offset_of(keys, p0, p1, p2), tile.lane);
      load_slices<NA_B_CHANNELS, NA_B_SLICES>(body.value[r], values, offset_of(values, p0, p1, p2), tile.lane);
      NA_UNROLL for (int i = 0; i < NA_A_SLICES * NA_VECTOR; ++i) body.key[r][i] *= NA_SCALE * NA_LOG2_E;
    }
    body.queries = queries;
    body.douts = douts;
    body.lses = lses;
    body.deltas = deltas;
    for (int h = head * NA_HEAD_GROUP; h < (head + 1) * NA_HEAD_GROUP; ++h) {
      body.query = view(query, Indexed::query_tokens, tile, batch, h);
      body.dout = view(dout, Indexed::queries, tile, batch, h);
      body.lse = view(lse, Indexed::queries, tile, batch, h);
      body.delta = view(delta, Indexed::queries, tile, batch, h);
      body.rpb = rpb + Offset(h) * NA_RPB_SIZE;
      sweep(body, tile, items);
    }
  }
  store_tokens<NA_A_CHANNELS, NA_A_SLICES>(dkey, body.dkey, tile, full, batch, head, heads, NA_SCALE);
  store_tokens<NA_B_CHANNELS, NA_B_SLICES>(dvalue, body.dvalue, tile, full, batch, head, heads, 1.0f);
}

/// Sums of queries, weighted by one number per slot: the gradient of key from that of logits, and of value.
template <class QueryP, class WeightP>
struct WeightedQueries {
  View<QueryP> query;
  View<WeightP> weight;
  NA_THREADGROUP NA_A_TYPE* queries;
  float out[NA_RUN][NA_A_SLICES * NA_VECTOR];

  NATTEN_FN void load(const NA_THREAD Tile& tile, Chunk chunk) {
    load_chunk<NA_A_CHANNELS, NA_A_SLICES, NA_A_PITCH>(queries, query, tile, chunk);
  }
  NATTEN_FN void begin_row(const NA_THREAD Tile&, Chunk) {}
  NATTEN_FN void end_row(const NA_THREAD Tile&, Row, Chunk) {}

  template <bool kMasked>
  NATTEN_FN void batch(const NA_THREAD Tile& tile, const NA_THREAD Items& items, Batch batch,
                       const NA_THREAD Mask& mask) {
    float weights[NA_RUN][NA_BATCH];
    NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
      NA_UNROLL for (int j = 0; j < NA_BATCH; ++j) {
        weights[r][j] = 0.0f;
        if (meets<kMasked>(mask, r, j)) {
          const int slot =
              pair_slot(tile, query_place(tile, 0, batch.p0), query_place(tile, 1, batch.p1),
                        query_place(tile, 2, batch.x + j), items.place[r][0], items.place[r][1], items.place[r][2]);
          weights[r][j] =
              float(weight.data[offset_of(weight, batch.p0, batch.p1, batch.x + j) + slot * weight.channel]);
        }
      }
    }
    add_batch<kMasked, NA_A_SLICES, NA_A_PITCH>(out, weights, queries, batch, mask, tile.lane);
  }
};

template <class QueryP, class WeightP, class T>
NATTEN_FN void attention_weighted_queries(Tensor<QueryP> query, Indexed query_indexed, Tensor<WeightP> weight,
                                          NA_DEVICE T* out, NA_THREADGROUP NA_A_TYPE* queries, Extent full,
                                          Extent lengths, int tile_index, int batch, int head, int heads,
                                          int thread_index) {
  const Tile tile = locate_tile<false>(tile_index, thread_index, full, lengths);
  WeightedQueries<QueryP, WeightP> body;
  NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
    NA_UNROLL for (int i = 0; i < NA_A_SLICES * NA_VECTOR; ++i) body.out[r][i] = 0.0f;
  }
  if (!tile.empty) {
    const Items items = items_of<false>(tile);
    body.queries = queries;
    for (int h = head * NA_HEAD_GROUP; h < (head + 1) * NA_HEAD_GROUP; ++h) {
      body.query = view(query, query_indexed, tile, batch, h);
      body.weight = view(weight, Indexed::queries, tile, batch, h);
      sweep(body, tile, items);
    }
  }
  store_tokens<NA_A_CHANNELS, NA_A_SLICES>(out, body.out, tile, full, batch, head, heads, NA_SCALE);
}

}  // namespace natten
