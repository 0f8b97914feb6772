// The split form's sums over queries: the gradients of key and of value.
namespace natten {

/// Sums of queries, weighted by one number per slot: the gradient of key from that of logits, and of value.
template <class QueryP, class WeightP>
struct WeightedQueries {
  StreamA<QueryP> queries;
  View<WeightP> weight;
  float out[NA_RUN][NA_A_SLICES * NA_VECTOR];

  NATTEN_FN void load(const NA_THREAD Tile& tile, Chunk chunk) { queries.load(tile, chunk); }
  NATTEN_FN void begin_row(const NA_THREAD Tile&, Chunk) {}
  NATTEN_FN void end_row(const NA_THREAD Tile&, Row, Chunk) {}

  template <int kCount, bool kMasked>
  NATTEN_FN void batch(const NA_THREAD Tile& tile, const NA_THREAD Items& items, Batch batch,
                       const NA_THREAD Mask& mask) {
    float weights[NA_RUN][NA_BATCH];
    NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
      NA_UNROLL for (int j = 0; j < kCount; ++j) {
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
    add_batch<kCount, kMasked, NA_A_SLICES, NA_A_PITCH>(out, weights, queries.rows, batch, mask, tile.lane);
  }
};

template <class QueryP, class WeightP, class T>
NATTEN_FN void attention_weighted_queries(Tensor<QueryP> query, Indexed query_indexed, Tensor<WeightP> weight,
                                          NA_DEVICE T* out, NA_THREADGROUP NA_A_TYPE* queries, Site site) {
  const Tile tile = tile_of<false>(site);
  WeightedQueries<QueryP, WeightP> body;
  clear(body.out);
  if (!tile.empty) {
    const Items items = items_of<false>(tile);
    body.queries.rows = queries;
    for (int h = site.head * NA_HEAD_GROUP; h < (site.head + 1) * NA_HEAD_GROUP; ++h) {
      body.queries.from = view(query, query_indexed, tile, h);
      body.weight = view(weight, Indexed::queries, tile, h);
      sweep(body, tile, items);
    }
  }
  store_tokens<NA_A_CHANNELS, NA_A_SLICES>(out, body.out, tile, NA_SCALE);
}

}  // namespace natten
