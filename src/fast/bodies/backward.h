// The fused gradients. Threads hold queries with their dout, and sum up the gradient of query (and of the relative
// position bias) while keys and values stream past; or they hold keys and values, and sum up both gradients while the
// queries that attend them stream past, all query heads of a group one after another. A is query and key, B dout and
// value.
namespace natten {

template <bool kQueries, class StreamedA, class StreamedB, class LseP, class DeltaP, class BiasP>
struct Backward {
  StreamA<StreamedA> a;
  StreamB<StreamedB> b;
  View<LseP> lse;
  View<DeltaP> delta;
  BiasP rpb;
  BiasGradient bias_gradient;
  NA_THREADGROUP float* lses;  ///< of streamed queries, in powers of two; their deltas follow
  float held_a[NA_RUN][NA_A_HELD];
  float held_b[NA_RUN][NA_B_HELD];
  float held_lse[NA_RUN];
  float held_delta[NA_RUN];
  float sum_a[NA_RUN][NA_A_HELD];
  float sum_b[NA_RUN][NA_B_HELD];

  NATTEN_FN void load(const NA_THREAD Tile& tile, Chunk chunk) NA_THREAD {
    a.load(tile, chunk);
    b.load(tile, chunk);
    if (kQueries) return;
    load_chunk_scalars(lses, lse, delta, tile, chunk);
  }
  NATTEN_FN void begin_row(const NA_THREAD Tile& tile, Chunk chunk) NA_THREAD { bias_gradient.begin_row(tile, chunk); }
  NATTEN_FN void end_row(const NA_THREAD Tile& tile, Row at, Chunk chunk) NA_THREAD {
    bias_gradient.end_row(tile, at, chunk);
  }

  template <int kCount, bool kMasked>
  NATTEN_FN void batch(const NA_THREAD Tile& tile, const NA_THREAD Items& items, Batch batch,
                       const NA_THREAD Mask& mask) NA_THREAD {
    // No softmax to wait for: a row is in registers for its dot product and for its share of the sum.
    NA_UNROLL_TWICE for (int j = 0; j < kCount; ++j) {
      const int slot = slot_of<kMasked>(batch, j);
      float row_a[NA_A_HELD], row_b[NA_B_HELD];
      a.read(row_a, slot, tile.lane);
      b.read(row_b, slot, tile.lane);
      float logits[NA_RUN], products[NA_RUN];
      NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
        if (!is_in_use<kMasked>(mask, r)) continue;
        logits[r] = sum_lanes(dot(held_a[r], row_a));
        products[r] = sum_lanes(dot(held_b[r], row_b));
      }
      NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
        if (!meets<kMasked>(mask, r, j)) continue;
#if NA_HAS_EXTRA
        const float unbiased = logits[r];
#endif
        if (NA_HAS_RPB) {
          logits[r] += NA_LOG2_E * float(rpb[rpb_entry(tile, pair_of<kQueries>(tile, items, batch, r, j))]);
        }
#if NA_HAS_EXTRA
        if (tile.is_extra) logits[r] = unbiased;
#endif
        const float weight = exp2_of(logits[r] - (kQueries ? held_lse[r] : lses[slot]));
        const float gradient = weight * (products[r] - (kQueries ? held_delta[r] : lses[NA_CHUNK + slot]));
        bias_gradient.stage(gradient, tile, batch, r, j);
        add_scaled(sum_a[r], gradient, row_a);
        if (!kQueries) add_scaled(sum_b[r], weight, row_b);
      }
    }
  }
};

/// Gradients of `held_a` and `held_b`. `scratch` is for lse and delta, or for the gradient of the bias.
template <bool kQueries, class HeldA, class HeldB, class StreamedA, class StreamedB, class LseP, class DeltaP,
          class BiasP, class TA, class TB>
NATTEN_FN void attention_backward(HeldA held_a, HeldB held_b, Tensor<StreamedA> streamed_a,
                                  Tensor<StreamedB> streamed_b, Tensor<LseP> lse, Tensor<DeltaP> delta, BiasP rpb,
                                  NA_DEVICE TA* to_a, NA_DEVICE TB* to_b, NA_DEVICE float* drpb,
                                  NA_THREADGROUP NA_A_TYPE* rows_a, NA_THREADGROUP NA_B_TYPE* rows_b,
                                  NA_THREADGROUP float* scratch, Site site, float scale) {
  const Tile tile = tile_of<kQueries>(site);
  Backward<kQueries, StreamedA, StreamedB, LseP, DeltaP, BiasP> body;
  clear(body.sum_a);
  clear(body.sum_b);
  body.bias_gradient.begin(tile, drpb, scratch);
  if (!tile.empty) {
    const Items items = items_of<kQueries>(tile);
    const Indexed held = kQueries ? Indexed::query_tokens : Indexed::keys;
    load_items<NA_A_CHANNELS>(body.held_a, view(held_a, held, tile, site.head), items, tile.lane, scale * NA_LOG2_E);
    load_items<NA_B_CHANNELS>(body.held_b, view(held_b, kQueries ? Indexed::queries : held, tile, site.head), items,
                              tile.lane, 1.0f);
    body.a.rows = rows_a;
    body.b.rows = rows_b;
    body.lses = scratch;
    const int heads = kQueries ? 1 : NA_HEAD_GROUP;  // of queries, for one of the site's
    for (int h = site.head * heads; h < (site.head + 1) * heads; ++h) {
      const int streamed = kQueries ? h / NA_HEAD_GROUP : h;
      body.a.from = view(streamed_a, kQueries ? Indexed::keys : Indexed::query_tokens, tile, streamed);
      body.b.from = view(streamed_b, kQueries ? Indexed::keys : Indexed::queries, tile, streamed);
      body.lse = view(lse, Indexed::queries, tile, h);
      body.delta = view(delta, Indexed::queries, tile, h);
      body.rpb = rpb + Offset(h) * NA_RPB_SIZE;
      NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
        if (!kQueries) continue;
        const float lse_of_query = number_at(body.lse, items.position[r]);
        body.held_lse[r] = backward_lse(lse_of_query);
        body.held_delta[r] = backward_delta(number_at(body.delta, items.position[r]), lse_of_query);
      }
#if NA_HAS_EXTRA
      sweep_extra(body, body.a.from, body.b.from, streamed_a, streamed_b, tile, items, streamed);
#endif
      sweep(body, tile, items);
    }
  }
  store_items<kQueries, kQueries, NA_A_CHANNELS>(to_a, body.sum_a, tile, scale);
  if (!kQueries) store_items<kQueries, false, NA_B_CHANNELS>(to_b, body.sum_b, tile, 1.0f);
}

}  // namespace natten
