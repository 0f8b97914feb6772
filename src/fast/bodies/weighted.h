// The split form's sums of streamed positions, weighted by one number per slot: of keys (av, and the gradient of query
// from that of logits), or of queries (the gradients of key and of value).
namespace natten {

template <bool kQueries, class StreamedP, class WeightP>
struct Weighted {
  StreamA<StreamedP> streamed;
  View<WeightP> weight;
  BiasGradient bias_gradient;
  float sum[NA_RUN][NA_A_HELD];

  NATTEN_FN void load(const NA_THREAD Tile& tile, Chunk chunk) NA_THREAD { streamed.load(tile, chunk); }
  NATTEN_FN void begin_row(const NA_THREAD Tile& tile, Chunk chunk) NA_THREAD { bias_gradient.begin_row(tile, chunk); }
  NATTEN_FN void end_row(const NA_THREAD Tile& tile, Row at, Chunk chunk) NA_THREAD {
    bias_gradient.end_row(tile, at, chunk);
  }

  template <int kCount, bool kMasked>
  NATTEN_FN void batch(const NA_THREAD Tile& tile, const NA_THREAD Items& items, Batch batch,
                       const NA_THREAD Mask& mask) NA_THREAD {
    float weights[NA_RUN][NA_BATCH];
    NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
      NA_UNROLL for (int j = 0; j < kCount; ++j) {
        weights[r][j] = 0.0f;
        if (!meets<kMasked>(mask, r, j)) continue;
        const Offset row =
            kQueries ? offset_of(weight, items.position[r]) : offset_of(weight, batch.p0, batch.p1, batch.x + j);
        const int slot = pair_slot(tile, pair_of<kQueries>(tile, items, batch, r, j));
        weights[r][j] = float(weight.data[row + slot * weight.channel]);
        bias_gradient.stage(weights[r][j], tile, batch, r, j);
      }
    }
    add_batch<kCount, kMasked>(sum, weights, streamed, batch, mask, tile.lane);
  }
};

/// kSpread: the sums are the gradients of queries, stored among all tokens.
template <bool kQueries, bool kSpread, class StreamedP, class WeightP, class T>
NATTEN_FN void attention_weighted(Tensor<StreamedP> streamed, Indexed indexed, Tensor<WeightP> weight,
                                  NA_DEVICE T* sums, NA_DEVICE float* drpb, NA_THREADGROUP NA_A_TYPE* rows,
                                  NA_THREADGROUP float* scratch, Site site, float scale) {
  const Tile tile = tile_of<kQueries>(site);
  Weighted<kQueries, StreamedP, WeightP> body;
  clear(body.sum);
  body.bias_gradient.begin(tile, drpb, scratch);
  if (!tile.empty) {
    const Items items = items_of<kQueries>(tile);
    body.streamed.rows = rows;
    const int heads = kQueries ? 1 : NA_HEAD_GROUP;  // of queries, for one of the site's
    for (int h = site.head * heads; h < (site.head + 1) * heads; ++h) {
      body.streamed.from = view(streamed, indexed, tile, kQueries ? h / NA_HEAD_GROUP : h);
      body.weight = view(weight, Indexed::queries, tile, h);
      sweep(body, tile, items);
    }
  }
  store_items<kQueries, kSpread, NA_A_CHANNELS>(sums, body.sum, tile, scale);
}

}  // namespace natten
