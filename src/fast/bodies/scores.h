// The split form's dot products, one per slot: qk (queries with keys), and the gradient of attn (dout with values).
namespace natten {

template <class KeyP, class BiasP, class T>
struct Scores {
  StreamA<KeyP> keys;
  BiasP rpb;
  NA_DEVICE T* scores;
  Offset row[NA_RUN];  ///< of `scores`; negative: not stored
  float query[NA_RUN][NA_A_HELD];

  NATTEN_FN void load(const NA_THREAD Tile& tile, Chunk chunk) NA_THREAD { keys.load(tile, chunk); }
  NATTEN_FN void begin_row(const NA_THREAD Tile&, Chunk) NA_THREAD {}
  NATTEN_FN void end_row(const NA_THREAD Tile&, Row, Chunk) NA_THREAD {}

  template <int kCount, bool kMasked>
  NATTEN_FN void batch(const NA_THREAD Tile& tile, const NA_THREAD Items& items, Batch batch,
                       const NA_THREAD Mask& mask) NA_THREAD {
    float logits[NA_RUN][NA_BATCH];
    dot_batch<kCount, kMasked>(logits, query, keys, batch, mask, tile.lane);
    if (NA_HAS_RPB) add_bias<kCount, kMasked>(logits, rpb, tile, items, batch, mask, 1.0f);
    NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
      const int slot = pair_slot(tile, pair_of<true>(tile, items, batch, r, 0));
      NA_UNROLL for (int j = 0; j < kCount; ++j) {
        if (meets<kMasked>(mask, r, j) && j % NA_LANES == tile.lane && row[r] >= 0) {
          scores[row[r] + slot + j] = from_float<T>(logits[r][j]);
        }
      }
    }
  }
};

/// `empty` is what slots without a key get; outputs past the end of a sample get 0.
template <class Query, class KeyP, class BiasP, class T>
NATTEN_FN void attention_scores(Query query, Indexed query_indexed, Tensor<KeyP> key, BiasP rpb, NA_DEVICE T* scores,
                                NA_THREADGROUP NA_A_TYPE* keys, Site site, float scale, float empty) {
  const Tile tile = tile_of<true>(site);
  Scores<KeyP, BiasP, T> body;
  NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
    const bool inside = is_inside<true>(tile, r);
    const Offset row = dense_row<true>(tile, r) * NA_SLOTS;
    body.row[r] = inside ? row : Offset(-1);
    const bool all_filled = inside && !NA_IS_CAUSAL_0 && !NA_IS_CAUSAL_1 && !NA_IS_CAUSAL_2;
    if (is_stored<true>(tile, r) && !all_filled) {
      for (int i = tile.lane; i < NA_SLOTS; i += NA_LANES) scores[row + i] = from_float<T>(inside ? empty : 0.0f);
    }
  }
  if (tile.empty) return;
  barrier_with_device_memory();  // other lanes overwrite what these filled
  const Items items = items_of<true>(tile);
  load_items<NA_A_CHANNELS>(body.query, view(query, query_indexed, tile, site.head), items, tile.lane, scale);
  body.keys.from = view(key, Indexed::keys, tile, site.head / NA_HEAD_GROUP);
  body.keys.rows = keys;
  body.rpb = rpb + Offset(site.head) * NA_RPB_SIZE;
  body.scores = scores;
  sweep(body, tile, items);
}

}  // namespace natten
