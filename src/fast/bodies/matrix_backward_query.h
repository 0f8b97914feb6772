// The fused gradient of query on matrix units. That of the relative position bias is left to backward_query.h.
namespace natten {

template <class KeyP, class ValueP>
struct MatrixBackwardQuery {
  View<KeyP> from_a;
  View<ValueP> from_b;
  NA_A_TYPE* rows_a;
  NA_B_TYPE* rows_b;
  unsigned query[NA_A_CHANNELS / 16][4];
  unsigned dout[NA_B_CHANNELS / 16][4];
  float dquery[NA_A_CHANNELS / 8][4];
  float lse[2];
  float delta[2];

  NATTEN_FN void load_scalars(int, const int (&)[3]) {}

  template <bool kCareful>
  NATTEN_FN void block(const Meeting& meeting, int row, bool all) {
    float logits[NA_BLOCK / 8][4], gradients[NA_BLOCK / 8][4];
    clear_blocks(logits);
    clear_blocks(gradients);
    multiply_rows<NA_A_PITCH>(logits, query, rows_a + row * NA_A_PITCH);
    scale_logits(logits);
    multiply_rows<NA_B_PITCH>(gradients, dout, rows_b + row * NA_B_PITCH);
    unsigned met = ~0u;
    if (!all) met = mask_logits(logits, meeting, shared_words() + row);
    NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
      NA_UNROLL for (int e = 0; e < 4; ++e) {
        gradients[i][e] = exp2_of(logits[i][e] - lse[e / 2]) * (gradients[i][e] - delta[e / 2]);
      }
    }
    add_rows<kCareful, NA_A_PITCH>(dquery, gradients, met, rows_a + row * NA_A_PITCH);
  }
};

template <class QueryP, class KeyP, class ValueP, class OutP, class LseP, class DoutP, class DlseP, class BiasP,
          class T>
NATTEN_FN void attention_backward_query(Tensor<QueryP> query, Tensor<KeyP> key, Tensor<ValueP> value, Tensor<OutP> out,
                                        Tensor<LseP> lse, Tensor<DoutP> dout, Tensor<DlseP> dlse, BiasP, T* dquery,
                                        float*, NA_A_TYPE* keys, NA_B_TYPE* values, float*, Site site) {
  const Tile tile = tile_of<true>(matrix_site(site));
  MatrixBackwardQuery<KeyP, ValueP> body;
  clear_blocks(body.dquery);
  if (!tile.empty) {
    const Items items = items_of<true>(tile);
    const Region region = region_of(tile);
    const Meeting meeting = meeting_of(tile, items, region);
    const View<OutP> outs = view(out, Indexed::queries, tile, site.head);
    const View<DoutP> douts = view(dout, Indexed::queries, tile, site.head);
    const View<LseP> lses = view(lse, Indexed::queries, tile, site.head);
    const View<DlseP> dlses = view(dlse, Indexed::queries, tile, site.head);
    load_operand(body.query, view(query, Indexed::query_tokens, tile, site.head), items, tile.lane);
    load_operand(body.dout, douts, items, tile.lane);
    NA_UNROLL for (int r = 0; r < 2; ++r) {
      const int* const position = items.position[r];
      float gradient[NA_B_SLICES * NA_VECTOR], forward[NA_B_SLICES * NA_VECTOR];
      load_slices<NA_B_CHANNELS, NA_B_SLICES>(gradient, douts, position, tile.lane, 1.0f);
      load_slices<NA_B_CHANNELS, NA_B_SLICES>(forward, outs, position, tile.lane, 1.0f);
      body.delta[r] = sum_row(dot(forward, gradient)) - number_at(dlses, position);
      body.lse[r] = NA_LOG2_E * number_at(lses, position);
    }
    body.from_a = view(key, Indexed::keys, tile, site.head / NA_HEAD_GROUP);
    body.from_b = view(value, Indexed::keys, tile, site.head / NA_HEAD_GROUP);
    body.rows_a = keys;
    body.rows_b = values;
    sweep_region<false>(body, tile, region, meeting);
    if (__syncthreads_or(!all_finite(body.dquery))) {
      clear_blocks(body.dquery);
      sweep_region<true>(body, tile, region, meeting);
    }
  }
  float vectors[2][NA_A_SLICES * NA_VECTOR];
  to_vectors<NA_A_SLICES>(vectors, body.dquery, tile.lane);
  NA_UNROLL for (int r = 0; r < 2; ++r) {
    if (!is_stored<true>(tile, r)) continue;
    finish(vectors[r], is_inside<true>(tile, r), NA_SCALE);
    store_query_gradient<NA_A_CHANNELS, NA_A_SLICES>(dquery, vectors[r], tile, r);
  }
}

}  // namespace natten
