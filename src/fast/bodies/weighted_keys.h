// The split form's sums over keys: av, and the gradient of query.
namespace natten {

/// Sums of keys, weighted by one number per slot: av, and the gradient of query from that of logits.
template <class KeyP, class WeightP>
struct WeightedKeys {
  StreamA<KeyP> keys;
  View<WeightP> weight;
  BiasGradient bias_gradient;
  Offset row[NA_RUN];
  float out[NA_RUN][NA_A_SLICES * NA_VECTOR];

  NATTEN_FN void load(const NA_THREAD Tile& tile, Chunk chunk) { keys.load(tile, chunk); }
  NATTEN_FN void begin_row(const NA_THREAD Tile& tile, Chunk chunk) {
    if (NA_HAS_RPB) bias_gradient.begin_row(tile, chunk);
  }
  NATTEN_FN void end_row(const NA_THREAD Tile& tile, Row at, Chunk chunk) {
    if (NA_HAS_RPB) bias_gradient.end_row(tile, at, chunk);
  }

  template <int kCount, bool kMasked>
  NATTEN_FN void batch(const NA_THREAD Tile& tile, const NA_THREAD Items& items, Batch batch,
                       const NA_THREAD Mask& mask) {
    float weights[NA_RUN][NA_BATCH];
    NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
      const int slot =
          pair_slot(tile, items.place[r][0], items.place[r][1], items.place[r][2], batch.p0, batch.p1, batch.x);
      NA_UNROLL for (int j = 0; j < kCount; ++j) {
        weights[r][j] = 0.0f;
        if (!meets<kMasked>(mask, r, j)) continue;
        weights[r][j] = float(weight.data[row[r] + (slot + j) * weight.channel]);
        if (NA_HAS_RPB) bias_gradient.stage(weights[r][j], tile, batch, r, j);
      }
    }
    add_batch<kCount, kMasked, NA_A_SLICES, NA_A_PITCH>(out, weights, keys.rows, batch, mask, tile.lane);
  }
};

template <bool kQueryGradient, class WeightP, class KeyP, class T>
NATTEN_FN void attention_weighted_keys(Tensor<WeightP> weight, Tensor<KeyP> key, NA_DEVICE T* out,
                                       NA_DEVICE float* drpb, NA_THREADGROUP NA_A_TYPE* keys,
                                       NA_THREADGROUP float* staged, Site site) {
  const Tile tile = tile_of<true>(site);
  WeightedKeys<KeyP, WeightP> body;
  clear(body.out);
  if (NA_HAS_RPB) {
    body.bias_gradient.staged = staged;
    body.bias_gradient.partial = drpb + (Offset(site.group) * site.heads + site.head) * NA_RPB_SIZE;
    body.bias_gradient.begin(tile);
  }
  if (!tile.empty) {
    const Items items = items_of<true>(tile);
    body.weight = view(weight, Indexed::queries, tile, site.head);
    NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
      body.row[r] = offset_of(body.weight, items.position[r][0], items.position[r][1], items.position[r][2]);
    }
    body.keys.from = view(key, Indexed::keys, tile, site.head / NA_HEAD_GROUP);
    body.keys.rows = keys;
    sweep(body, tile, items);
  }
  NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
    if (!is_stored<true>(tile, r)) continue;
    finish(body.out[r], is_inside<true>(tile, r), NA_SCALE);
    if (kQueryGradient) {
      store_query_gradient<NA_A_CHANNELS, NA_A_SLICES>(out, body.out[r], tile, r);
    } else {
      store_slices<NA_A_CHANNELS, NA_A_SLICES>(out + dense_row<true>(tile, r) * NA_A_CHANNELS, body.out[r], tile.lane);
    }
  }
}

}  // namespace natten
