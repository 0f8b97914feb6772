// The fused forward where queries are few, as in decoding: a threadgroup holds one query, its threads divide the keys
// of the window among them and read them from device memory, since nobody else there needs them. NA_LANES threads share
// a key. Each part of the window has a softmax of its own; they are joined at the end, always in the same order.
namespace natten {

/// What a thread knows of its part of the window, in powers of two.
struct Part {
  float maximum;
  float sum;
  float out[NA_RUN][NA_B_HELD];
};

NATTEN_FN Part no_part() {
  Part part;
  part.maximum = -3.4e38f;  // finite, so that a part without keys gives exp2(-inf)
  part.sum = 0.0f;
  clear(part.out);
  return part;
}

/// Makes `highest`, which is not below it, the part's maximum.
NATTEN_FN void raise(NA_THREAD Part& part, float highest) {
  const float factor = exp2_of(part.maximum - highest);
  part.maximum = highest;
  part.sum *= factor;
  NA_UNROLL for (int i = 0; i < NA_B_HELD; ++i) part.out[0][i] *= factor;
}

/// Joins the parts of a simdgroup's threads that hold the same channels; all get the same bits.
NATTEN_FN void join_simdgroup(NA_THREAD Part& part) {
  NA_UNROLL for (int distance = 1; distance < 32 / NA_LANES; distance *= 2) {
    raise(part, greater(part.maximum, exchange(part.maximum, distance)));
    part.sum += exchange(part.sum, distance);
    NA_UNROLL for (int i = 0; i < NA_B_HELD; ++i) part.out[0][i] += exchange(part.out[0][i], distance);
  }
}

template <class KeyP, class ValueP, class BiasP>
struct Decode {
  View<KeyP> keys;
  View<ValueP> values;
  BiasP rpb;
  float query[NA_RUN][NA_A_HELD];
  Part part;

  /// The `i`-th key of the query's window.
  NATTEN_FN Batch key_at(const NA_THREAD Items& items, int i) const NA_THREAD {
    const int width = items.met[0][2].end - items.met[0][2].start;
    Batch at = {items.met[0][0].start, items.met[0][1].start, items.met[0][2].start, 0, 0, 0};
    if (NA_KERNEL_SIZE_0 * NA_KERNEL_SIZE_1 == 1) {
      at.x += i;
    } else {
      const int rows = items.met[0][1].end - items.met[0][1].start;
      at.p0 += i / width / rows;
      at.p1 += i / width % rows;
      at.x += i % width;
    }
    return at;
  }

  /// Keys `first`, `first` + step, ..., NA_BATCH of them; kMasked: those below `count`.
  template <bool kMasked>
  NATTEN_FN void batch(const NA_THREAD Tile& tile, const NA_THREAD Items& items, int first, int count) NA_THREAD {
    constexpr int kStep = NA_THREADS / NA_LANES;
    float weights[NA_BATCH];
    Batch at[NA_BATCH];
    float highest = part.maximum;
    NA_UNROLL for (int j = 0; j < NA_BATCH; ++j) {
      at[j] = key_at(items, first + j * kStep);
      weights[j] = 0.0f;
      if (kMasked && first + j * kStep >= count) continue;
      float x[NA_A_HELD];
      load_row<NA_A_CHANNELS>(x, keys, offset_of(keys, at[j].p0, at[j].p1, at[j].x), tile.lane);
      weights[j] = dot(query[0], x);
    }
    NA_UNROLL for (int j = 0; j < NA_BATCH; ++j) {
      weights[j] = sum_lanes(weights[j]);
#if NA_HAS_EXTRA
      const float unbiased = weights[j];
#endif
      if (kMasked && first + j * kStep >= count) {
        weights[j] = -NA_INFINITY;
      } else if (NA_HAS_RPB) {
        weights[j] += NA_LOG2_E * float(rpb[rpb_entry(tile, pair_of<true>(tile, items, at[j], 0, 0))]);
      }
#if NA_HAS_EXTRA
      if (tile.is_extra && first + j * kStep < count) weights[j] = unbiased;
#endif
      highest = greater(highest, weights[j]);
    }
    raise(part, highest);
    NA_UNROLL for (int j = 0; j < NA_BATCH; ++j) {
      if (kMasked && first + j * kStep >= count) continue;
      const float weight = exp2_of(weights[j] - highest);
      part.sum += weight;
      float x[NA_B_HELD];
      load_row<NA_B_CHANNELS>(x, values, offset_of(values, at[j].p0, at[j].p1, at[j].x), tile.lane);
      add_scaled(part.out[0], weight, x);
    }
  }
};

template <class Query, class KeyP, class ValueP, class BiasP, class OutT>
NATTEN_FN void attention_forward(Query query, Tensor<KeyP> key, Tensor<ValueP> value, BiasP rpb, NA_DEVICE OutT* out,
                                 NA_DEVICE float* lse, NA_THREADGROUP float* parts, Site site, float scale) {
  constexpr int kSlots = 32 / NA_LANES, kSimdgroups = NA_THREADS / 32, kPart = 2 + NA_B_HELD * NA_LANES;
  const Tile tile = tile_of<true>(site);
  const int slot = site.thread_index % kSlots, simdgroup = site.thread_index / 32;
  Decode<KeyP, ValueP, BiasP> body;
  body.part = no_part();
  if (!tile.empty) {
    const Items items = items_of<true>(tile);
    load_items<NA_A_CHANNELS>(body.query, view(query, Indexed::query_tokens, tile, site.head), items, tile.lane,
                              scale * NA_LOG2_E);
    body.keys = view(key, Indexed::keys, tile, site.head / NA_HEAD_GROUP);
    body.values = view(value, Indexed::keys, tile, site.head / NA_HEAD_GROUP);
    body.rpb = rpb + Offset(site.head) * NA_RPB_SIZE;
    int count = 1;
    NA_UNROLL for (int a = 0; a < 3; ++a) count *= items.met[0][a].end - items.met[0][a].start;
    constexpr int kAtOnce = NA_THREADS / NA_LANES * NA_BATCH;
    int first = simdgroup * kSlots + slot;
    for (; all_lanes(first + kAtOnce - NA_THREADS / NA_LANES < count); first += kAtOnce) {
      body.template batch<false>(tile, items, first, count);
    }
    for (; any_lane(first < count); first += kAtOnce) body.template batch<true>(tile, items, first, count);
#if NA_HAS_EXTRA
    body.keys = extra_view(key, tile, site.head / NA_HEAD_GROUP);
    body.values = extra_view(value, tile, site.head / NA_HEAD_GROUP);
    const Tile extra = extra_tile(tile, key.extra_count);
    const Items every = extra_items(items, extra);
    for (first = simdgroup * kSlots + slot; any_lane(first < key.extra_count); first += kAtOnce) {
      body.template batch<true>(extra, every, first, key.extra_count);
    }
#endif
  }
  join_simdgroup(body.part);
  if (kSimdgroups > 1) {
    NA_THREADGROUP float* const own = parts + simdgroup * kPart;
    if (slot == 0 && tile.lane == 0) {
      own[0] = body.part.maximum;
      own[1] = body.part.sum;
    }
    if (slot == 0) {
      NA_UNROLL for (int i = 0; i < NA_B_HELD; ++i) own[2 + i * NA_LANES + tile.lane] = body.part.out[0][i];
    }
    barrier();
    if (simdgroup > 0) return;
    body.part = no_part();
    for (int s = slot; s < kSimdgroups; s += kSlots) {
      const NA_THREADGROUP float* const other = parts + s * kPart;
      const float highest = greater(body.part.maximum, other[0]);
      const float factor = exp2_of(other[0] - highest);
      raise(body.part, highest);
      body.part.sum += factor * other[1];
      NA_UNROLL for (int i = 0; i < NA_B_HELD; ++i) body.part.out[0][i] += factor * other[2 + i * NA_LANES + tile.lane];
    }
    join_simdgroup(body.part);
  }
  if (slot > 0) return;
  const float maximum[NA_RUN] = {body.part.maximum}, sum[NA_RUN] = {body.part.sum};
  store_softmax(out, lse, body.part.out, maximum, sum, tile);
}

}  // namespace natten
