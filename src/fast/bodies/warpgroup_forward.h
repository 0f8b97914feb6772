// The fused forward on Hopper's warpgroup instructions: producers bring keys and values in, and each consumer warpgroup
// has the products of one block under way while it makes weights of the next one's logits.
namespace natten {

struct WarpgroupForward {
  static constexpr bool kInRegisters = NA_HOLD_SHARED == 0;
  float factor;  ///< of products, to powers of two
  WarpgroupBias bias;
  Held<NA_A_TYPE, kInRegisters ? NA_A_CHANNELS : 8> query;
  unsigned held;  ///< address of its rows in shared memory
  unsigned ones[4];
  float out[NA_B_WIDTH / 8][4];
  float maximum[2];  ///< of logits, without the factor where there is no bias; with it in the end
  float sum[2];      ///< of this thread's keys
  unsigned weights[NA_BLOCK / 16][4];

  /// Of what weigh() takes.
  NATTEN_FN float factor_of_logits() const { return NA_HAS_RPB ? 1.0f : factor; }
  NATTEN_FN float least_logit() const { return NA_HAS_RPB ? NA_LEAST_LOGIT * factor : NA_LEAST_LOGIT; }

  NATTEN_FN void clear() {
    clear_blocks(out);
    NA_UNROLL for (int r = 0; r < 2; ++r) {
      maximum[r] = least_logit();
      sum[r] = 0.0f;
    }
  }

  template <class QueryP>
  NATTEN_FN void prepare(const Stages& stages, const Tile& tile, const Items& items, View<QueryP> from, int warpgroup,
                         bool is_negative) {
    if constexpr (kInRegisters) {
      query.load(from, items, lane_of(threadIdx.x));
      if (is_negative) {
        NA_UNROLL for (int s = 0; s < NA_A_WIDTH / 16; ++s) {
          NA_UNROLL for (int h = 0; h < 4; ++h) query.v[s][h] ^= 0x80008000u;
        }
      }
    } else {
      const int to = Stages::held(warpgroup);
      held = stages.address + to;
      const RowsToHold<true> rows(tile, warpgroup);
      rows.template copy<NA_A_CHANNELS>(stages, tile, from, to);
      if (is_negative) rows.template negate<NA_A_CHANNELS>(stages, to);
      rows.finish();
    }
    if (NA_MASK == kMaskUnits) load_ones(ones, false);
    bias.begin<true>(stages, tile, items);
  }

  NATTEN_FN void begin_logits(float (&logits)[NA_BLOCK / 8][4], unsigned stage, unsigned penalties) {
    multiply_by_held<NA_A_WIDTH, kInRegisters>(logits, query, held, stage);
    if (NA_MASK == kMaskUnits) multiply_block(logits, ones, penalty_descriptor(penalties), 1);
    commit_products();
  }

  NATTEN_FN void begin_sums(unsigned stage) {
    pin(out);
    begin_products();
    typedef Panels<NA_B_WIDTH> Layout;
    const unsigned long long values = Layout::along(stage);
    NA_UNROLL for (int s = 0; s < NA_BLOCK / 16; ++s) {
      multiply_b(out, weights[s], values + Layout::along_step(s), 1);
    }
    commit_products();
  }

  /// Logits to weights; how much smaller the weights before have become. The maximum is one that was true some blocks
  /// ago, as long as no weight exceeds kMostWeight: then sums need not shrink. Two chains for each row, for latency.
  NATTEN_FN bool weigh(float (&logits)[NA_BLOCK / 8][4], float (&shrunk)[2]) {
    constexpr float kMostWeight = 8.0f;  // as a power of two
    const float factor = factor_of_logits();
    float highest[2][2];
    NA_UNROLL for (int e = 0; e < 4; ++e) highest[e / 2][e % 2] = fmaxf(maximum[e / 2], logits[0][e]);
    NA_UNROLL for (int i = 1; i < NA_BLOCK / 8; ++i) {
      NA_UNROLL for (int e = 0; e < 4; ++e) highest[e / 2][e % 2] = fmaxf(highest[e / 2][e % 2], logits[i][e]);
    }
    bool grown = false;
    NA_UNROLL for (int r = 0; r < 2; ++r) {
      float& most = highest[r][0];
      most = fmaxf(most, highest[r][1]);
      most = fmaxf(most, exchange(most, 1));
      most = fmaxf(most, exchange(most, 2));
      grown = grown || (most - maximum[r]) * factor > kMostWeight;
    }
    grown = any_lane(grown);
    NA_UNROLL for (int r = 0; r < 2; ++r) {
      shrunk[r] = grown ? exp2_of((maximum[r] - highest[r][0]) * factor) : 1.0f;
      maximum[r] = grown ? highest[r][0] : maximum[r];
    }
    const float least[2] = {maximum[0] * factor, maximum[1] * factor};
    float sums[2][2] = {{sum[0] * shrunk[0], 0.0f}, {sum[1] * shrunk[1], 0.0f}};
    NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
      NA_UNROLL for (int e = 0; e < 4; ++e) {
        logits[i][e] = exp2_of(logits[i][e] * factor - least[e / 2]);
        sums[e / 2][e % 2] += logits[i][e];
      }
    }
    NA_UNROLL for (int r = 0; r < 2; ++r) sum[r] = sums[r][0] + sums[r][1];
    return grown;
  }
  NATTEN_FN void shrink(const float (&shrunk)[2]) {
    NA_UNROLL for (int j = 0; j < NA_B_WIDTH / 8; ++j) {
      NA_UNROLL for (int e = 0; e < 4; ++e) out[j][e] *= shrunk[e / 2];
    }
  }

  /// The same for one warp without matrix units, without rounding, and with only the pairs that meet: for tiles whose
  /// results are not finite.
  template <class QueryP, class KeyP, class ValueP>
  NATTEN_FN void redo(View<QueryP> query, View<KeyP> key, View<ValueP> value, View<KeyP> extra_key,
                      View<ValueP> extra_value, int extra, const float* rpb, const Tile& tile, const Items& items,
                      float signed_factor) {
    const int lane = hardware_lane() % 4;
    clear_blocks(out);
    NA_UNROLL for (int r = 0; r < 2; ++r) {
      maximum[r] = -3.4e38f;
      sum[r] = 0.0f;
      int extent[3], count = 1;
      NA_UNROLL for (int a = 0; a < 3; ++a) {
        extent[a] = greater(items.met[r][a].end - items.met[r][a].start, 0);
        count *= extent[a];
      }
      const QueryP row = query.data + offset_of(query, items.position[r]);
      const int most = __reduce_max_sync(0xffffffffu, count);
      _Pragma("unroll 1") for (int n = -extra; n < most; ++n) {
        const bool on = n < count;
        const int m = on && n > 0 ? n : 0, columns = greater(extent[2], 1), rows = greater(extent[1], 1);
        const int p[3] = {items.met[r][0].start + m / columns / rows, items.met[r][1].start + m / columns % rows,
                          items.met[r][2].start + m % columns};
        const MetRow<KeyP> k(key, extra_key, n, p);
        float logit = 0.0f;
        if (on) {
          NA_UNROLL for (int c = lane; c < NA_A_CHANNELS; c += 4) {
            logit += float(row[c * query.channel]) * k[c];
          }
        }
        logit = sum_row(logit) * signed_factor;
        if (!on) continue;
        if (NA_HAS_RPB && n >= 0) logit += NA_LOG2_E * rpb[bias_entry_of<true>(tile, items, r, p)];
        const float highest = greater(maximum[r], logit), shrunk = exp2_of(maximum[r] - highest);
        const float weight = exp2_of(logit - highest);
        maximum[r] = highest;
        sum[r] = sum[r] * shrunk + (lane == 0 ? weight : 0.0f);
        const MetRow<ValueP> v(value, extra_value, n, p);
        NA_UNROLL for (int j = 0; j < NA_B_CHANNELS / 8; ++j) {
          NA_UNROLL for (int e = 0; e < 2; ++e) {
            out[j][2 * r + e] = out[j][2 * r + e] * shrunk + weight * v[8 * j + 2 * lane + e];
          }
        }
      }
    }
  }
  template <class T>
  NATTEN_FN void store(const Tile& tile, T* to, float* lse) const {
    NA_UNROLL for (int r = 0; r < 2; ++r) {
      const float all = sum_row(sum[r]), inverse = 1.0f / all;
      const bool is_empty = all == 0.0f;  // every logit is -inf
      const bool stored = is_stored<true>(tile, r), inside = is_inside<true>(tile, r);
      const Offset row = stored ? dense_row<true>(tile, r) : 0;
      if (stored && tile.lane == 0) {
        lse[row] = inside ? (is_empty ? -NA_INFINITY : maximum[r] + log2_of(all)) * NA_LN_2 : 0.0f;
      }
      store_sums<NA_B_CHANNELS>(to + row * NA_B_CHANNELS, out, r, inverse, stored, inside && !is_empty);
    }
  }
};

/// A warpgroup's work on some blocks of one tile, after which `body` has their sums: a block's logits' products run
/// beside the products of the block before with values. In `shared` blocks it takes turns with the other warpgroup.
template <bool kExtra>
NATTEN_FN void consume(WarpgroupForward& body, const Stages& stages, Ring& ring, const Blocks& blocks,
                       Range<int> shared, int warpgroup) {
  float logits[NA_BLOCK / 8][4], shrunk[2];
  Ring keys = ring;
  const auto finish_logits = [&](int block) {
    pin(logits);
    body.bias.to_logits<true, kExtra>(logits, body.factor, stages.address + Stages::offsets(keys.stage));
    release(stages.empty_a(keys.stage));
    mask_row<kExtra>(logits, block, blocks);
  };
  const auto begin_logits = [&] {
    body.begin_logits(logits, stages.address + Stages::a(keys.stage),
                      stages.address + Stages::penalties(keys.stage, warpgroup));
  };
  wait_until_full(stages.full_a(keys.stage), keys.phase);
  begin_logits();
  wait_for_products<0>();
  finish_logits(blocks.met.start);
  keys.advance();
  body.weigh(logits, shrunk);
  if (NA_HAS_EXTRA && !kExtra)
    body.shrink(shrunk);  // there are no sums yet that could shrink, but those of additional tokens
  pack(body.weights, logits);
  _Pragma("unroll 1") for (int block = blocks.met.start + 1; block < blocks.met.end; ++block) {
    wait_until_full(stages.full_a(keys.stage), keys.phase);
    const bool in_turn = NA_PING_PONG && block >= shared.start && block < shared.end;
    if (in_turn) named_barrier(1 + warpgroup, 256);
    begin_logits();
    wait_until_full(stages.full_b(ring.stage), ring.phase);
    body.begin_sums(stages.address + Stages::b(ring.stage));
    if (in_turn) arrive_at_named(2 - warpgroup, 256);
    wait_for_products<1>();
    finish_logits(block);
    const bool grown = body.weigh(logits, shrunk);
    hold_back(body.sum[0] + body.sum[1], stages.address);
    wait_for_products<0>();
    pin(body.out);
    release(stages.empty_b(ring.stage));
    if (grown) body.shrink(shrunk);
    pack(body.weights, logits);
    ring = keys;
    keys.advance();
  }
  wait_until_full(stages.full_b(ring.stage), ring.phase);
  body.begin_sums(stages.address + Stages::b(ring.stage));
  wait_for_products<0>();
  pin(body.out);
  release(stages.empty_b(ring.stage));
  ring.advance();
}

template <class Query, class KeyP, class ValueP, class OutT, class Axes>
NATTEN_FN void attention_forward(Query query, Tensor<KeyP> key, Tensor<ValueP> value, const float* rpb, OutT* out,
                                 float* lse, unsigned char* memory, Axes axes, int batches, int heads,
                                 const int* lengths, float scale) {
  const Stages stages = stages_at(memory);
  start_stages(stages);
  const int head = blockIdx.y;
  rpb += Offset(head) * NA_RPB_SIZE;
  const float factor = fabsf(scale) * NA_LOG2_E;
  const bool has_large_bias = stage_bias_tables(stages, rpb, factor);
  const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);  // uniform, which the compiler must see
  Ring ring = {0, 0};
  const int groups = batches * tile_count<true>(spans_of(axes));
  // Registers: what a tile of a span, of a circular axis, or of a 2-D one of one warpgroup is, is found once before its
  // main loop, and again after it.
  constexpr bool kAgain = NA_HAS_SPANS || kIsCircular || (NA_WARPGROUPS == 1 && NA_KERNEL_SIZE_0 == 1);
  if (warpgroup == NA_WARPGROUPS) {
    hand_registers_on();
    _Pragma("unroll 1") for (int group = blockIdx.x; group < groups; group += gridDim.x) {
      const Tile tile = warpgroup_tile<true>(axes, group, head, heads, lengths);
      if (tile.empty) continue;
      const FlatRegion f = flat_region_of(tile);
      const int thread = threadIdx.x - 128 * NA_WARPGROUPS;
      make_penalty_table<true>(stages, tile, f, thread);
      produce_extra(stages, ring, tile, key, value, head / NA_HEAD_GROUP, thread);
      produce<false>(stages, ring, tile, f, view(key, Indexed::keys, tile, head / NA_HEAD_GROUP),
                     view(value, Indexed::keys, tile, head / NA_HEAD_GROUP), NoNumbers{}, thread);
    }
  } else {
    take_registers();
    if (NA_PING_PONG && warpgroup == 1) arrive_at_named(1, 256);
    _Pragma("unroll 1") for (int group = blockIdx.x; group < groups; group += gridDim.x) {
      Tile tile = warpgroup_tile<true>(axes, group, head, heads, lengths);
      take_place(tile, warpgroup);
      WarpgroupForward body;
      body.factor = factor;
      body.clear();
      int skipped = 0;
      if (!tile.empty) {
        Items items = items_of<true>(tile);
        const FlatRegion f = flat_region_of(tile);
        const WarpgroupSpan span = span_of<true>(tile, f, warpgroup);
        const Blocks blocks = blocks_of(span, tile, items), tokens = blocks_of_extra(extra_count(key));
        Range<int> shared = {0, 0}, shared_tokens = {0, 0};
        if (NA_PING_PONG) {
          const Range<int> other = active_blocks(span_of<true>(tile, f, 1 - warpgroup));
          shared = Range<int>{greater(blocks.met.start, other.start) + 1, lesser(blocks.met.end, other.end)};
          if (other.end > 0) shared_tokens = Range<int>{1, tokens.met.end};
        }
        skipped = ceil_div(f.size, NA_BLOCK) - blocks.met.end;
        if (blocks.met.end == 0) {
          skipped += tokens.met.end;
        } else {
          body.prepare(stages, tile, items, view(query, Indexed::query_tokens, tile, head), warpgroup, scale < 0.0f);
          if (NA_HAS_EXTRA) consume<true>(body, stages, ring, tokens, shared_tokens, warpgroup);
          skip_blocks(stages, ring, blocks.met.start);
          consume<false>(body, stages, ring, blocks, shared, warpgroup);
          if (kAgain) {
            Axes again = axes;
            forget(again);
            asm volatile("" : "+r"(group)::"memory");
            tile = warpgroup_tile<true>(again, group, head, heads, lengths);
            take_place(tile, warpgroup);
            items = items_of<true>(tile);
          }
          bool good = all_finite(body.out) && body.factor > kLeastFactor && !has_large_bias;
          NA_UNROLL for (int r = 0; r < 2; ++r) {
            good = good && fabsf(body.sum[r]) < NA_INFINITY && body.maximum[r] > body.least_logit();
            body.maximum[r] *= body.factor_of_logits();
          }
          if (any_lane(!good)) {
            const View<KeyP> keys = view(key, Indexed::keys, tile, head / NA_HEAD_GROUP);
            const View<ValueP> values = view(value, Indexed::keys, tile, head / NA_HEAD_GROUP);
            body.redo(view(query, Indexed::query_tokens, tile, head), keys, values,
                      extra_or(keys, key, tile, head / NA_HEAD_GROUP),
                      extra_or(values, value, tile, head / NA_HEAD_GROUP), extra_count(key), rpb, tile, items,
                      scale * NA_LOG2_E);
          }
        }
      }
      body.store(tile, out, lse);
      skip_blocks(stages, ring, skipped);
    }
  }
}

}  // namespace natten
