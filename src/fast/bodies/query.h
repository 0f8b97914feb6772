// Kernels whose threads hold queries while keys stream past: the fused forward, the gradient of query (and of the
// relative position bias), and the split form's two shapes of product.
namespace natten {

/// Entry of a head's bias table, per axis rpb_index().
NATTEN_FN int rpb_entry(const NA_THREAD Tile& tile, int q0, int q1, int q2, int k0, int k1, int k2) {
  const int i0 = rpb_index(tile.axes[0].axis, q0, k0);
  const int i1 = rpb_index(tile.axes[1].axis, q1, k1);
  const int i2 = rpb_index(tile.axes[2].axis, q2, k2);
  return (i0 * (2 * NA_KERNEL_SIZE_1 - 1) + i1) * (2 * NA_KERNEL_SIZE_2 - 1) + i2;
}

NATTEN_FN int slot_on_axis(const NA_THREAD Tile& tile, int a, int query_place, int key_place) {
  const BasicAxis<int> axis = tile.axes[a].axis;
  const int start = axis.is_causal ? 0 : window(axis, query_place, tile.groups[a].places).start;
  return slot_of_key(axis, query_place, start, key_place);
}

/// Slot of a (query, key) pair in the split form's last axis.
NATTEN_FN int pair_slot(const NA_THREAD Tile& tile, int q0, int q1, int q2, int k0, int k1, int k2) {
  return (slot_on_axis(tile, 0, q0, k0) * NA_KERNEL_SIZE_1 + slot_on_axis(tile, 1, q1, k1)) * NA_KERNEL_SIZE_2 +
         slot_on_axis(tile, 2, q2, k2);
}

/// Adds the bias, in powers of two, to the logits of a batch.
template <bool kMasked, class P>
NATTEN_FN void add_bias(NA_THREAD float (&logits)[NA_RUN][NA_BATCH], P rpb, const NA_THREAD Tile& tile,
                        const NA_THREAD Items& items, Batch batch, const NA_THREAD Mask& mask, float factor) {
  NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
    const int entry =
        rpb_entry(tile, items.place[r][0], items.place[r][1], items.place[r][2], batch.p0, batch.p1, batch.x);
    NA_UNROLL for (int j = 0; j < NA_BATCH; ++j) {
      if (meets<kMasked>(mask, r, j)) logits[r][j] += factor * float(rpb[entry + j]);
    }
  }
}

template <class KeyP, class ValueP, class BiasP>
struct Forward {
  StreamA<KeyP> keys;
  StreamB<ValueP> values;
  BiasP rpb;
  float query[NA_RUN][NA_A_SLICES * NA_VECTOR];
  float out[NA_RUN][NA_B_SLICES * NA_VECTOR];
  float maximum[NA_RUN];
  float sum[NA_RUN];

  NATTEN_FN void load(const NA_THREAD Tile& tile, Chunk chunk) {
    keys.load(tile, chunk);
    values.load(tile, chunk);
  }
  NATTEN_FN void begin_row(const NA_THREAD Tile&, Chunk) {}
  NATTEN_FN void end_row(const NA_THREAD Tile&, Row, Chunk) {}

  template <bool kMasked>
  NATTEN_FN void batch(const NA_THREAD Tile& tile, const NA_THREAD Items& items, Batch batch,
                       const NA_THREAD Mask& mask) {
    float weights[NA_RUN][NA_BATCH];
    dot_batch<kMasked, NA_A_SLICES, NA_A_PITCH>(weights, query, keys.rows, batch, tile.lane);
    if (NA_HAS_RPB) add_bias<kMasked>(weights, rpb, tile, items, batch, mask, NA_LOG2_E);
    bool grown = false;
    float highest[NA_RUN];
    NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
      highest[r] = maximum[r];
      NA_UNROLL for (int j = 0; j < NA_BATCH; ++j) {
        if (!meets<kMasked>(mask, r, j)) weights[r][j] = -NA_INFINITY;
        highest[r] = greater(highest[r], weights[r][j]);
      }
      grown = grown || highest[r] > maximum[r];
    }
    if (any_lane(grown)) {  // rare after the first batches
      NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
        const float factor = exp2_of(maximum[r] - highest[r]);
        maximum[r] = highest[r];
        sum[r] *= factor;
        NA_UNROLL for (int i = 0; i < NA_B_SLICES * NA_VECTOR; ++i) out[r][i] *= factor;
      }
    }
    NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
      NA_UNROLL for (int j = 0; j < NA_BATCH; ++j) {
        weights[r][j] = exp2_of(weights[r][j] - maximum[r]);
        sum[r] += weights[r][j];
      }
    }
    add_batch<kMasked, NA_B_SLICES, NA_B_PITCH>(out, weights, values.rows, batch, mask, tile.lane);
  }
};

template <class QueryP, class KeyP, class ValueP, class BiasP, class OutT>
NATTEN_FN void attention_forward(Tensor<QueryP> query, Tensor<KeyP> key, Tensor<ValueP> value, BiasP rpb,
                                 NA_DEVICE OutT* out, NA_DEVICE float* lse, NA_THREADGROUP NA_A_TYPE* keys,
                                 NA_THREADGROUP NA_B_TYPE* values, Site site) {
  const Tile tile = tile_of<true>(site);
  Forward<KeyP, ValueP, BiasP> body;
  clear(body.out);
  NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
    body.maximum[r] = -3.4e38f;  // finite, so that a batch without keys gives exp2(-inf)
    body.sum[r] = 0.0f;
  }
  if (!tile.empty) {
    const Items items = items_of<true>(tile);
    const View<QueryP> queries = view(query, Indexed::query_tokens, tile, site.head);
    NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
      load_slices<NA_A_CHANNELS, NA_A_SLICES>(body.query[r], queries, items.position[r], tile.lane,
                                              NA_SCALE * NA_LOG2_E);
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
    const bool inside = is_inside<true>(tile, r);
    finish(body.out[r], inside, 1.0f / body.sum[r]);
    const Offset row = dense_row<true>(tile, r);
    store_slices<NA_B_CHANNELS, NA_B_SLICES>(out + row * NA_B_CHANNELS, body.out[r], tile.lane);
    if (tile.lane == 0) lse[row] = inside ? (body.maximum[r] + log2_of(body.sum[r])) * NA_LN_2 : 0.0f;
  }
}

/// Stores a query's gradient in the dense array of all tokens, and 0 in those that a query stride skips after it.
template <int kChannels, int kSlices, class T>
NATTEN_FN void store_query_gradient(NA_DEVICE T* to, const NA_THREAD float* from, const NA_THREAD Tile& tile,
                                    int item) {
  int token[3], end[3];
  NA_UNROLL for (int a = 0; a < 3; ++a) {
    const int stride = tile.axes[a].axis.stride;
    token[a] = index_of<true>(tile, item, a) * stride;
    end[a] = lesser(token[a] + stride, tile.at.full.v[a]);
  }
  for (int t0 = token[0]; t0 < end[0]; ++t0) {
    for (int t1 = token[1]; t1 < end[1]; ++t1) {
      for (int t2 = token[2]; t2 < end[2]; ++t2) {
        const Offset row =
            ((Offset(tile.at.batch) * tile.at.full.v[0] + t0) * tile.at.full.v[1] + t1) * tile.at.full.v[2] + t2;
        NA_DEVICE T* const target = to + (row * tile.at.heads + tile.at.head) * kChannels;
        if (t0 == token[0] && t1 == token[1] && t2 == token[2]) {
          store_slices<kChannels, kSlices>(target, from, tile.lane);
        } else {
          for (int c = tile.lane; c < kChannels; c += NA_LANES) target[c] = from_float<T>(0.0f);
        }
      }
    }
  }
}

/// Gradient of the bias table, summed over a tile: its logit gradients are laid out by query and column of the chunk,
/// row by row, and each table entry is then summed by one thread in a fixed order.
struct BiasGradient {
  NA_THREADGROUP float* staged;  ///< [queries of the tile][NA_STAGE_COLUMNS]
  NA_DEVICE float* partial;      ///< this tile's table
  int row;                       ///< of `staged`: the thread's first query; the next is `next` rows on
  int next;

  NATTEN_FN void begin(const NA_THREAD Tile& tile) {
    row = (tile.coordinate[0] * NA_EXTENT_1 + tile.coordinate[1]) * NA_EXTENT_2 + tile.coordinate[2];
    next = NA_RUN_AXIS == 1 ? NA_EXTENT_2 : 1;
    for (int i = tile.at.thread_index; i < NA_RPB_SIZE; i += NA_THREADS) partial[i] = 0.0f;
    barrier_with_device_memory();
  }
  NATTEN_FN void begin_row(const NA_THREAD Tile& tile, Chunk chunk) {
    NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
      for (int i = tile.lane; i < chunk.columns; i += NA_LANES) staged[(row + r * next) * NA_STAGE_COLUMNS + i] = 0.0f;
    }
    barrier();
  }
  NATTEN_FN void stage(float gradient, const NA_THREAD Tile& tile, Batch batch, int item, int j) {
    if (j % NA_LANES == tile.lane && is_inside<true>(tile, item)) {
      staged[(row + item * next) * NA_STAGE_COLUMNS + batch.x + j - batch.first_x] = gradient;
    }
  }
  NATTEN_FN void end_row(const NA_THREAD Tile& tile, Row at, Chunk chunk) {
    barrier();
    const AxisGroup g0 = tile.groups[0], g1 = tile.groups[1], g2 = tile.groups[2];
    const int queries = lesser(NA_EXTENT_2, g2.queries - tile.origin[2]);
    const int first_place = g2.first_place + tile.origin[2] * NA_STEP_2;
    const int last_place = first_place + (queries - 1) * NA_STEP_2;
    const int first_entry = greater(rpb_index(tile.axes[2].axis, last_place, chunk.x), 0);
    const int last_entry =
        lesser(rpb_index(tile.axes[2].axis, first_place, chunk.x + chunk.columns - 1), 2 * NA_KERNEL_SIZE_2 - 2);
    const int entries = last_entry - first_entry + 1;
    for (int i = tile.at.thread_index; i < NA_EXTENT_0 * NA_EXTENT_1 * entries; i += NA_THREADS) {
      const int line = i / entries;  // a row of queries on axis 2; all others have another place on axis 0 or 1
      const int entry = first_entry + i % entries;
      const int m0 = tile.origin[0] + line / NA_EXTENT_1, m1 = tile.origin[1] + line % NA_EXTENT_1;
      const int entry0 = rpb_index(tile.axes[0].axis, g0.first_place + m0 * NA_STEP_0, at.p0);
      const int entry1 = rpb_index(tile.axes[1].axis, g1.first_place + m1 * NA_STEP_1, at.p1);
      if (m0 >= g0.queries || m1 >= g1.queries || entry0 < 0 || entry0 > 2 * NA_KERNEL_SIZE_0 - 2 || entry1 < 0 ||
          entry1 > 2 * NA_KERNEL_SIZE_1 - 2) {
        continue;
      }
      float sum = 0.0f;
      for (int q = 0; q < queries; ++q) {
        const int column = first_place + q * NA_STEP_2 + entry - (NA_KERNEL_SIZE_2 - 1) - chunk.x;
        if (column >= 0 && column < chunk.columns) sum += staged[(line * NA_EXTENT_2 + q) * NA_STAGE_COLUMNS + column];
      }
      partial[(entry0 * (2 * NA_KERNEL_SIZE_1 - 1) + entry1) * (2 * NA_KERNEL_SIZE_2 - 1) + entry] += sum;
    }
    barrier_with_device_memory();
  }
};

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

  template <bool kMasked>
  NATTEN_FN void batch(const NA_THREAD Tile& tile, const NA_THREAD Items& items, Batch batch,
                       const NA_THREAD Mask& mask) {
    int entry[NA_RUN];
    NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
      entry[r] = rpb_entry(tile, items.place[r][0], items.place[r][1], items.place[r][2], batch.p0, batch.p1, batch.x);
    }
    // No softmax to wait for: a key is in registers for its dot product and for its share of the sum.
    NA_UNROLL_TWICE for (int j = 0; j < NA_BATCH; ++j) {
      const int slot = slot_of<kMasked>(batch, j);
      float k[NA_A_SLICES * NA_VECTOR], v[NA_B_SLICES * NA_VECTOR];
      load_row<NA_A_SLICES>(k, keys.rows + slot * NA_A_PITCH, tile.lane);
      load_row<NA_B_SLICES>(v, values.rows + slot * NA_B_PITCH, tile.lane);
      float logits[NA_RUN], products[NA_RUN];
      NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
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

/// Dot products of queries with keys, one per slot: qk, and the gradient of attn (dout with values).
template <class KeyP, class BiasP, class T>
struct Scores {
  StreamA<KeyP> keys;
  BiasP rpb;
  NA_DEVICE T* scores;
  Offset row[NA_RUN];  ///< of `scores`; negative: not stored
  float query[NA_RUN][NA_A_SLICES * NA_VECTOR];

  NATTEN_FN void load(const NA_THREAD Tile& tile, Chunk chunk) { keys.load(tile, chunk); }
  NATTEN_FN void begin_row(const NA_THREAD Tile&, Chunk) {}
  NATTEN_FN void end_row(const NA_THREAD Tile&, Row, Chunk) {}

  template <bool kMasked>
  NATTEN_FN void batch(const NA_THREAD Tile& tile, const NA_THREAD Items& items, Batch batch,
                       const NA_THREAD Mask& mask) {
    float logits[NA_RUN][NA_BATCH];
    dot_batch<kMasked, NA_A_SLICES, NA_A_PITCH>(logits, query, keys.rows, batch, tile.lane);
    if (NA_HAS_RPB) add_bias<kMasked>(logits, rpb, tile, items, batch, mask, 1.0f);
    NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
      const int slot =
          pair_slot(tile, items.place[r][0], items.place[r][1], items.place[r][2], batch.p0, batch.p1, batch.x);
      NA_UNROLL for (int j = 0; j < NA_BATCH; ++j) {
        if (meets<kMasked>(mask, r, j) && j % NA_LANES == tile.lane && row[r] >= 0) {
          scores[row[r] + slot + j] = from_float<T>(logits[r][j]);
        }
      }
    }
  }
};

/// `empty` is what slots without a key get; outputs past the end of a sample get 0.
template <class QueryP, class KeyP, class BiasP, class T>
NATTEN_FN void attention_scores(Tensor<QueryP> query, Indexed query_indexed, Tensor<KeyP> key, BiasP rpb,
                                NA_DEVICE T* scores, NA_THREADGROUP NA_A_TYPE* keys, Site site, float empty) {
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
  const View<QueryP> queries = view(query, query_indexed, tile, site.head);
  NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
    load_slices<NA_A_CHANNELS, NA_A_SLICES>(body.query[r], queries, items.position[r], tile.lane, NA_SCALE);
  }
  body.keys.from = view(key, Indexed::keys, tile, site.head / NA_HEAD_GROUP);
  body.rpb = rpb + Offset(site.head) * NA_RPB_SIZE;
  body.keys.rows = keys;
  body.scores = scores;
  sweep(body, tile, items);
}

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

  template <bool kMasked>
  NATTEN_FN void batch(const NA_THREAD Tile& tile, const NA_THREAD Items& items, Batch batch,
                       const NA_THREAD Mask& mask) {
    float weights[NA_RUN][NA_BATCH];
    NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
      const int slot =
          pair_slot(tile, items.place[r][0], items.place[r][1], items.place[r][2], batch.p0, batch.p1, batch.x);
      NA_UNROLL for (int j = 0; j < NA_BATCH; ++j) {
        weights[r][j] = 0.0f;
        if (!meets<kMasked>(mask, r, j)) continue;
        weights[r][j] = float(weight.data[row[r] + (slot + j) * weight.channel]);
        if (NA_HAS_RPB) bias_gradient.stage(weights[r][j], tile, batch, r, j);
      }
    }
    add_batch<kMasked, NA_A_SLICES, NA_A_PITCH>(out, weights, keys.rows, batch, mask, tile.lane);
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
