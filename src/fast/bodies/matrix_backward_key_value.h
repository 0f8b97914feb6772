// The fused gradients of key and value on matrix units: transposed products, with keys as rows.
namespace natten {

template <class QueryP, class LseP, class DoutP, class DeltaP, class BiasP>
struct MatrixBackwardKeyValue {
  View<QueryP> from_a;
  View<DoutP> from_b;
  View<LseP> lse;
  View<DeltaP> delta;
  NA_A_TYPE* rows_a;
  NA_B_TYPE* rows_b;
  float* lses;
  float* deltas;
  BiasP rpb;
  int bias_entry[2];  ///< of the region's first query
  unsigned key[NA_A_CHANNELS / 16][4];
  unsigned value[NA_B_CHANNELS / 16][4];
  float dkey[NA_A_CHANNELS / 8][4];
  float dvalue[NA_B_CHANNELS / 8][4];

  NATTEN_FN void load_scalars(int i, const int (&p)[3]) {
    lses[i] = NA_LOG2_E * number_at(lse, p);
    deltas[i] = number_at(delta, p);
  }

  template <bool kCareful>
  NATTEN_FN void block(const Meeting& meeting, int row, bool all) {
    float weights[NA_BLOCK / 8][4], gradients[NA_BLOCK / 8][4];
    clear_blocks(weights);
    clear_blocks(gradients);
    multiply_rows<NA_A_PITCH>(weights, key, rows_a + row * NA_A_PITCH);
    scale_logits(weights);
    multiply_rows<NA_B_PITCH>(gradients, value, rows_b + row * NA_B_PITCH);
    if (NA_HAS_RPB) {
      const int step[3] = {-NA_STEP_0, -NA_STEP_1, -NA_STEP_2};
      add_bias(weights, rpb, bias_entry, step, meeting, shared_words() + row);
    }
    unsigned met = ~0u;
    if (!all) met = mask_logits(weights, meeting, shared_words() + row);
    NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
      NA_UNROLL for (int e = 0; e < 4; ++e) {
        const int column = row + 8 * i + hardware_lane() % 4 * 2 + e % 2;
        weights[i][e] = exp2_of(weights[i][e] - lses[column]);
        gradients[i][e] = weights[i][e] * (gradients[i][e] - deltas[column]);
      }
    }
    add_rows<kCareful, NA_B_PITCH>(dvalue, weights, met, rows_b + row * NA_B_PITCH);
    add_rows<kCareful, NA_A_PITCH>(dkey, gradients, met, rows_a + row * NA_A_PITCH);
  }
};

template <class QueryP, class KeyP, class ValueP, class LseP, class DoutP, class DeltaP, class BiasP, class KeyT,
          class ValueT>
NATTEN_FN void attention_backward_key_value(Tensor<QueryP> query, Tensor<KeyP> key, Tensor<ValueP> value,
                                            Tensor<LseP> lse, Tensor<DoutP> dout, Tensor<DeltaP> delta, BiasP rpb,
                                            KeyT* dkey, ValueT* dvalue, NA_A_TYPE* queries, NA_B_TYPE* douts,
                                            float* lses, float* deltas, Site site) {
  const Tile tile = tile_of<false>(matrix_site(site));
  MatrixBackwardKeyValue<QueryP, LseP, DoutP, DeltaP, BiasP> body;
  clear_blocks(body.dkey);
  clear_blocks(body.dvalue);
  if (!tile.empty) {
    const Items items = items_of<false>(tile);
    const Region region = region_of(tile);
    const Meeting meeting = meeting_of(tile, items, region);
    load_operand(body.key, view(key, Indexed::keys, tile, site.head), items, tile.lane);
    load_operand(body.value, view(value, Indexed::keys, tile, site.head), items, tile.lane);
    body.rows_a = queries;
    body.rows_b = douts;
    body.lses = lses;
    body.deltas = deltas;
    NA_UNROLL for (int r = 0; r < 2; ++r) {
      const int* const place = items.place[r];
      body.bias_entry[r] =
          rpb_entry(tile, query_place(tile, 0, tile.region[0].start), query_place(tile, 1, tile.region[1].start),
                    query_place(tile, 2, tile.region[2].start), place[0], place[1], place[2]);
    }
    bool careful = false;
    while (true) {
      for (int h = site.head * NA_HEAD_GROUP; h < (site.head + 1) * NA_HEAD_GROUP; ++h) {
        body.from_a = view(query, Indexed::query_tokens, tile, h);
        body.from_b = view(dout, Indexed::queries, tile, h);
        body.lse = view(lse, Indexed::queries, tile, h);
        body.delta = view(delta, Indexed::queries, tile, h);
        body.rpb = rpb + Offset(h) * NA_RPB_SIZE;
        if (careful) {
          sweep_region<true>(body, tile, region, meeting);
        } else {
          sweep_region<false>(body, tile, region, meeting);
        }
      }
      if (careful || !__syncthreads_or(!all_finite(body.dkey) || !all_finite(body.dvalue))) break;
      careful = true;
      clear_blocks(body.dkey);
      clear_blocks(body.dvalue);
    }
  }
  float keys[2][NA_A_SLICES * NA_VECTOR], values[2][NA_B_SLICES * NA_VECTOR];
  to_vectors<NA_A_SLICES>(keys, body.dkey, tile.lane);
  to_vectors<NA_B_SLICES>(values, body.dvalue, tile.lane);
  store_tokens<NA_A_CHANNELS, NA_A_SLICES>(dkey, keys, tile, NA_SCALE);
  store_tokens<NA_B_CHANNELS, NA_B_SLICES>(dvalue, values, tile, 1.0f);
}

}  // namespace natten
