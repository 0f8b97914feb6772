// The fused gradients on Hopper's warpgroup instructions, as matrix_backward.h. Consumers hold queries with their dout,
// or keys and values, as left operands: in registers, or where these do not suffice in shared memory. Weights and
// gradients of logits go from one product to the next in registers, so nothing is transposed.
namespace natten {

/// With the gradient of A, that of B, or both.
template <bool kQueries, bool kSumsA, bool kSumsB>
struct WarpgroupBackward {
  static constexpr bool kInRegisters = NA_HOLD_SHARED == 0;
  /// Whether registers hold a block's logits beside its products of dout and value.
  static constexpr bool kHasBoth = kInRegisters || !kSumsA || !kSumsB;
  float factor;  ///< of products, to powers of two
  WarpgroupBias bias;
  WarpgroupBiasGradient bias_gradient;
  Held<NA_A_TYPE, kInRegisters ? NA_A_CHANNELS : 8> held_a;
  Held<NA_B_TYPE, kInRegisters ? NA_B_CHANNELS : 8> held_b;
  unsigned held;  ///< address of rows of A in shared memory, which rows of B follow
  unsigned ones[4];
  float lse[2], delta[2];  ///< of queries that are held
  float sum_a[kSumsA ? NA_A_WIDTH / 8 : 1][4];
  float sum_b[kSumsB ? NA_B_WIDTH / 8 : 1][4];
  unsigned weights[NA_BLOCK / 16][4], gradients[NA_BLOCK / 16][4];  ///< operands

  template <class A, class B, class LseP, class DeltaP>
  NATTEN_FN void prepare(const Stages& stages, const Tile& tile, const Items& items, View<A> a, View<B> b,
                         Tensor<LseP> lses, Tensor<DeltaP> deltas, int warpgroup, bool is_negative) {
    if constexpr (kInRegisters) {
      held_a.load(a, items, lane_of(threadIdx.x));
      held_b.load(b, items, lane_of(threadIdx.x));
    } else {
      const RowsToHold<kQueries> rows(tile, warpgroup);
      const int to = Stages::held(warpgroup);
      held = stages.address + to;
      rows.template copy<NA_A_CHANNELS>(stages, tile, a, to);
      rows.template copy<NA_B_CHANNELS>(stages, tile, b, to + Stages::kHeldA);
      rows.finish();
    }
    if (NA_MASK == kMaskUnits) load_ones(ones, is_negative);
    bias.begin<kQueries>(stages, tile, items);
    bias_gradient.hold(tile, items);
    if (!kQueries) return;
    const View<LseP> lse_view = view(lses, Indexed::queries, tile, tile.at.head);
    const View<DeltaP> delta_view = view(deltas, Indexed::queries, tile, tile.at.head);
    NA_UNROLL for (int r = 0; r < 2; ++r) {
      const float lse_of_query = number_at(lse_view, items.position[r]);
      const bool exists = !NA_BIAS_GRADIENT || is_inside<true>(tile, r);
      lse[r] = exists ? backward_lse(lse_of_query) : NA_INFINITY;  // without weights
      delta[r] = backward_delta(number_at(delta_view, items.position[r]), lse_of_query);
    }
  }

  NATTEN_FN void begin_logits(float (&logits)[NA_BLOCK / 8][4], unsigned stage, unsigned penalties) {
    multiply_by_held<NA_A_WIDTH, kInRegisters>(logits, held_a, held, stage);
    if (NA_MASK == kMaskUnits) multiply_block(logits, ones, penalty_descriptor(penalties), 1);
    commit_products();
  }
  NATTEN_FN void begin_gradients(float (&products)[NA_BLOCK / 8][4], unsigned stage) {
    multiply_by_held<NA_B_WIDTH, kInRegisters>(products, held_b, held + Stages::kHeldA, stage);
    commit_products();
  }
  NATTEN_FN void begin_sums_a(unsigned stage) {
    pin(sum_a);
    begin_products();
    typedef Panels<NA_A_WIDTH> Layout;
    NA_UNROLL for (int s = 0; s < NA_BLOCK / 16; ++s) {
      multiply_a(sum_a, gradients[s], Layout::along(stage) + Layout::along_step(s), 1);
    }
    commit_products();
  }
  NATTEN_FN void begin_sums_b(unsigned stage) {
    pin(sum_b);
    begin_products();
    typedef Panels<NA_B_WIDTH> Layout;
    NA_UNROLL for (int s = 0; s < NA_BLOCK / 16; ++s) {
      multiply_b(sum_b, weights[s], Layout::along(stage) + Layout::along_step(s), 1);
    }
    commit_products();
  }

  /// Numbers of two neighbouring streamed queries. A query all of whose logits are -inf gives NaN here, and so the tile
  /// is done again.
  NATTEN_FN static float2 numbers_at(unsigned numbers, int block) {
    return load_numbers(numbers + 32 * block + hardware_lane() % 4 * 8);
  }
  /// Logits to weights; without a bias they are products.
  NATTEN_FN void weigh(float (&logits)[NA_BLOCK / 8][4], unsigned numbers) {
    const float to_logits = NA_HAS_RPB ? 1.0f : factor;
    NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
      float2 n;
      if (!kQueries) n = numbers_at(numbers, i);
      const float column[2] = {kQueries ? 0.0f : n.x * NA_LOG2_E, kQueries ? 0.0f : n.y * NA_LOG2_E};
      NA_UNROLL for (int e = 0; e < 4; ++e) {
        logits[i][e] = exp2_of(logits[i][e] * to_logits - (kQueries ? lse[e / 2] : column[e % 2]));
      }
    }
  }
  /// products: of dout and value; become gradients of logits.
  NATTEN_FN void differentiate(float (&products)[NA_BLOCK / 8][4], const float (&weights)[NA_BLOCK / 8][4],
                               unsigned numbers) const {
    NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
      float2 n;
      if (!kQueries) n = numbers_at(numbers + NA_BLOCK * 4, i);
      const float column[2] = {kQueries ? 0.0f : n.x, kQueries ? 0.0f : n.y};
      NA_UNROLL for (int e = 0; e < 4; ++e) {
        products[i][e] = weights[i][e] * (products[i][e] - (kQueries ? delta[e / 2] : column[e % 2]));
      }
    }
  }

  /// The same with the weights as they were rounded.
  NATTEN_FN void differentiate_packed(float (&products)[NA_BLOCK / 8][4], unsigned numbers) const {
    NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
      const float2 n = numbers_at(numbers + NA_BLOCK * 4, i);
      NA_UNROLL for (int e = 0; e < 4; ++e) {
        products[i][e] =
            half_of(weights[i / 2][i % 2 * 2 + e / 2], e % 2) * (products[i][e] - (e % 2 == 0 ? n.x : n.y));
      }
    }
  }

  /// One warp's sums without matrix units, without rounding, and with only the pairs that meet: for tiles whose results
  /// are not finite. Adds to the sums.
  template <class HeldA, class HeldB, class A, class B, class LseP, class DeltaP>
  NATTEN_FN void redo(View<HeldA> held_a, View<HeldB> held_b, View<A> a, View<B> b, View<LseP> lses,
                      View<DeltaP> deltas, View<A> extra_a, View<B> extra_b, int extra, const float* rpb,
                      const Tile& tile, const Items& items) {
    const int lane = hardware_lane() % 4;
    NA_UNROLL for (int r = 0; r < 2; ++r) {
      int extent[3], count = 1;
      NA_UNROLL for (int axis = 0; axis < 3; ++axis) {
        extent[axis] = greater(items.met[r][axis].end - items.met[r][axis].start, 0);
        count *= extent[axis];
      }
      const HeldA row_a = held_a.data + offset_of(held_a, items.position[r]);
      const HeldB row_b = held_b.data + offset_of(held_b, items.position[r]);
      const int most = __reduce_max_sync(0xffffffffu, count);
      _Pragma("unroll 1") for (int n = -extra; n < most; ++n) {
        const bool on = n < count;
        const int m = on && n > 0 ? n : 0, columns = greater(extent[2], 1), rows = greater(extent[1], 1);
        const int p[3] = {items.met[r][0].start + m / columns / rows, items.met[r][1].start + m / columns % rows,
                          items.met[r][2].start + m % columns};
        const MetRow<A> from_a(a, extra_a, n, p);
        const MetRow<B> from_b(b, extra_b, n, p);
        float logit = 0.0f, product = 0.0f;
        if (on) {
          NA_UNROLL for (int c = lane; c < NA_A_CHANNELS; c += 4) {
            logit += float(row_a[c * held_a.channel]) * from_a[c];
          }
          NA_UNROLL for (int c = lane; c < NA_B_CHANNELS; c += 4) {
            product += float(row_b[c * held_b.channel]) * from_b[c];
          }
        }
        logit = sum_row(logit);
        product = sum_row(product);
        if (!NA_BIAS_GRADIENT && !on) continue;  // what sums that gradient stays together
        const bool has_bias = NA_HAS_RPB && on && n >= 0;
        const float lse_of_query = kQueries ? number_at(lses, items.position[r]) : number_at(lses, p);
        const float delta_of_query = kQueries ? number_at(deltas, items.position[r]) : number_at(deltas, p);
        const int entry = has_bias ? bias_entry_of<kQueries>(tile, items, r, p) : 0;
        const float added = has_bias ? NA_LOG2_E * rpb[entry] : 0.0f;
        const float weight = exp2_of(logit * factor + added - backward_lse(lse_of_query));
        const float gradient = weight * (product - backward_delta(delta_of_query, lse_of_query));
        if constexpr (NA_BIAS_GRADIENT) {
          bias_gradient.add_again(gradient, entry, has_bias && is_inside<kQueries>(tile, r));
          if (!on) continue;
        }
        NA_UNROLL for (int j = 0; j < NA_A_CHANNELS / 8 && kSumsA; ++j) {
          NA_UNROLL for (int e = 0; e < 2; ++e) {
            sum_a[j][2 * r + e] += gradient * from_a[8 * j + 2 * lane + e];
          }
        }
        NA_UNROLL for (int j = 0; j < NA_B_CHANNELS / 8 && kSumsB; ++j) {
          NA_UNROLL for (int e = 0; e < 2; ++e) {
            sum_b[j][2 * r + e] += weight * from_b[8 * j + 2 * lane + e];
          }
        }
      }
    }
  }

  template <class TA, class TB>
  NATTEN_FN void store(const Tile& tile, TA* to_a, TB* to_b, float scale) const {
    NA_UNROLL for (int r = 0; r < 2; ++r) {
      const bool stored = is_stored<kQueries>(tile, r), inside = is_inside<kQueries>(tile, r);
      if (!kQueries) {
        const Offset row = stored ? dense_row<false>(tile, r) : 0;
        if constexpr (kSumsA) store_sums<NA_A_CHANNELS>(to_a + row * NA_A_CHANNELS, sum_a, r, scale, stored, inside);
        if constexpr (kSumsB) store_sums<NA_B_CHANNELS>(to_b + row * NA_B_CHANNELS, sum_b, r, 1.0f, stored, inside);
        continue;
      }
      // Of queries in an array like query, with 0 in the rows that a stride skips.
      const QueryRows rows = query_rows_of(tile, r);
      const Offset own = stored ? token_row(tile, rows.own[0], rows.own[1], rows.own[2]) : 0;
      store_sums<NA_A_CHANNELS>(to_a + own * NA_A_CHANNELS, sum_a, r, scale, stored, inside);
      if (NA_STRIDE_0 * NA_STRIDE_1 * NA_STRIDE_2 == 1 || !stored) continue;
      for (int t0 = rows.start[0]; t0 < rows.end[0]; ++t0) {
        for (int t1 = rows.start[1]; t1 < rows.end[1]; ++t1) {
          for (int t2 = rows.start[2]; t2 < rows.end[2]; ++t2) {
            if (t0 == rows.own[0] && t1 == rows.own[1] && t2 == rows.own[2]) continue;
            TA* const target = to_a + token_row(tile, t0, t1, t2) * NA_A_CHANNELS;
            for (int c = tile.lane * 8; c < NA_A_CHANNELS; c += 32) {
              *reinterpret_cast<uint4*>(target + c) = make_uint4(0, 0, 0, 0);
            }
          }
        }
      }
    }
  }
};

/// One warpgroup's work on some blocks of one tile. The last products with a block run beside the first
/// ones with the next, where registers suffice for both.
template <bool kExtra, bool kQueries, bool kSumsA, bool kSumsB>
NATTEN_FN void consume(WarpgroupBackward<kQueries, kSumsA, kSumsB>& body, const Stages& stages, Ring& ring,
                       const Blocks& blocks, int warpgroup) {
  typedef WarpgroupBackward<kQueries, kSumsA, kSumsB> Body;
  constexpr bool kBeside = kQueries && NA_A_WIDTH + NA_B_WIDTH <= 128;
  float weights[NA_BLOCK / 8][4];
  int last = -1;  // stage of the block before
  const auto finish_last = [&] {
    if (kSumsA) pin(body.sum_a);
    if (kSumsB) pin(body.sum_b);
    if (last < 0) return;
    release(stages.empty_a(last));
    release(stages.empty_b(last));
  };
  _Pragma("unroll 1") for (int block = blocks.met.start; block < blocks.met.end; ++block) {
    const unsigned a = stages.address + Stages::a(ring.stage), b = stages.address + Stages::b(ring.stage);
    const unsigned numbers = stages.address + Stages::numbers(ring.stage);
    const auto finish_logits = [&] {
      pin(weights);
      body.bias.template to_logits<kQueries, kExtra>(weights, body.factor,
                                                     stages.address + Stages::offsets(ring.stage));
      mask_row<kExtra>(weights, block, blocks);
    };
    wait_until_full(stages.full_a(ring.stage), ring.phase);
    body.begin_logits(weights, a, stages.address + Stages::penalties(ring.stage, warpgroup));
    if constexpr (Body::kHasBoth) {
      float gradients[NA_BLOCK / 8][4];
      wait_until_full(stages.full_b(ring.stage), ring.phase);
      if (kSumsA) body.begin_gradients(gradients, b);
      wait_for_products<kSumsA ? 1 : 0>();
      if (kBeside) finish_last();
      finish_logits();
      body.weigh(weights, numbers);
      if constexpr (kSumsB) {
        pack(body.weights, weights);
        body.begin_sums_b(b);
        if (kSumsA) wait_for_products<1>();
      } else {
        hold_back(weights, stages.address);
        wait_for_products<0>();
      }
      if constexpr (kSumsA) {
        pin(gradients);
        body.differentiate(gradients, weights, numbers);
        if (!kExtra) body.bias_gradient.add(gradients, stages.base + Stages::offsets(ring.stage));
        pack(body.gradients, gradients);
      }
    } else {  // registers for one of both alone
      wait_for_products<0>();
      finish_logits();
      wait_until_full(stages.full_b(ring.stage), ring.phase);
      body.weigh(weights, numbers);
      pack(body.weights, weights);
      body.begin_gradients(weights, b);
      body.begin_sums_b(b);
      wait_for_products<1>();
      pin(weights);
      body.differentiate_packed(weights, numbers);
      pack(body.gradients, weights);
    }
    if constexpr (kSumsA) body.begin_sums_a(a);
    last = ring.stage;
    ring.advance();
    if (!kBeside) {
      wait_for_products<0>();
      finish_last();
    }
  }
  if (!kBeside) return;
  wait_for_products<0>();
  finish_last();
}

template <bool kQueries, class HeldA, class HeldB, class StreamedA, class StreamedB, class LseP, class DeltaP, class TA,
          class TB, class Axes>
NATTEN_FN void attention_backward(Tensor<HeldA> held_a, Tensor<HeldB> held_b, Tensor<StreamedA> streamed_a,
                                  Tensor<StreamedB> streamed_b, Tensor<LseP> lse, Tensor<DeltaP> delta,
                                  const float* rpb, TA* to_a, TB* to_b, float* drpb, unsigned char* memory, Axes axes,
                                  int batches, int heads, const int* lengths, float scale) {
  const Stages stages = stages_at(memory);
  start_stages(stages);
  const int head = blockIdx.y;
  // Of queries, for one of the keys'.
  const int first_head = kQueries ? head : head * NA_HEAD_GROUP, end_head = first_head + (kQueries ? 1 : NA_HEAD_GROUP);
  rpb += Offset(first_head) * NA_RPB_SIZE;
  const bool has_large_bias = stage_bias_tables(stages, rpb, scale * NA_LOG2_E);
  const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);  // uniform, which the compiler must see
  Ring ring = {0, 0};
  const int groups = batches * tile_count<kQueries>(spans_of(axes));
  const auto view_a = [&](const Tile& tile, int h) {
    return view(streamed_a, kQueries ? Indexed::keys : Indexed::query_tokens, tile, kQueries ? h / NA_HEAD_GROUP : h);
  };
  const auto view_b = [&](const Tile& tile, int h) {
    return view(streamed_b, kQueries ? Indexed::keys : Indexed::queries, tile, kQueries ? h / NA_HEAD_GROUP : h);
  };
  const auto held_of = [&](auto tensor, const Tile& tile, Indexed queries) {
    return view(tensor, kQueries ? queries : Indexed::keys, tile, head);
  };
  // Registers hold the sums of both gradients, or with NA_WIDE of one: then the other one's come first.
  constexpr bool kTwice = NA_WIDE && !kQueries;
  if (warpgroup == NA_WARPGROUPS) {
    hand_registers_on();
    const int thread = threadIdx.x - 128 * NA_WARPGROUPS;
    _Pragma("unroll 1") for (int group = blockIdx.x; group < groups; group += gridDim.x) {
      const Tile tile = warpgroup_tile<kQueries>(axes, group, head, heads, lengths);
      if (tile.empty) continue;
      const FlatRegion f = flat_region_of(tile);
      make_penalty_table<kQueries>(stages, tile, f, thread);
      _Pragma("unroll 1") for (int n = 0; n < (kTwice ? 2 : 1) * (end_head - first_head); ++n) {
        const int h = first_head + n % (end_head - first_head);
        if constexpr (kQueries) {
          produce_extra(stages, ring, tile, streamed_a, streamed_b, h / NA_HEAD_GROUP, thread);
          produce<false>(stages, ring, tile, f, view_a(tile, h), view_b(tile, h), NoNumbers{}, thread);
        } else {
          const QueryNumbers numbers(view(lse, Indexed::queries, tile, h), view(delta, Indexed::queries, tile, h));
          produce<false>(stages, ring, tile, f, view_a(tile, h), view_b(tile, h), numbers, thread);
        }
      }
    }
    return;
  }
  take_registers();
  const bool has_penalties = fabsf(scale * NA_LOG2_E) > kLeastFactor && !has_large_bias;
  const auto sum_tile = [&](auto& body, int group) {
    body.factor = scale * NA_LOG2_E;
    clear_blocks(body.sum_a);
    clear_blocks(body.sum_b);
    {  // registers: what a tile is, is found once before its main loop, and again after it
      Tile tile = warpgroup_tile<kQueries>(axes, group, head, heads, lengths);
      take_place(tile, warpgroup);
      if (!tile.empty) {
        const Items items = items_of<kQueries>(tile);
        const FlatRegion f = flat_region_of(tile);
        const WarpgroupSpan span = span_of<kQueries>(tile, f, warpgroup);
        const Blocks blocks = blocks_of(span, tile, items), tokens = blocks_of_extra(extra_count(streamed_a));
        body.prepare(stages, tile, items, held_of(held_a, tile, Indexed::query_tokens),
                     held_of(held_b, tile, Indexed::queries), lse, delta, warpgroup, scale < 0.0f);
        const int past = ceil_div(f.size, NA_BLOCK) - blocks.met.end;
        if (NA_HAS_EXTRA) consume<true>(body, stages, ring, tokens, warpgroup);
        _Pragma("unroll 1") for (int h = first_head; h < end_head; ++h) {
          skip_blocks(stages, ring, blocks.met.start);
          consume<false>(body, stages, ring, blocks, warpgroup);
          skip_blocks(stages, ring, past);
          if (NA_HAS_RPB) body.bias.table += kBiasTable;  // of the next head
        }
      }
    }
    Axes again = axes;
    if (kIsCircular) forget(again);
    asm volatile("" : "+r"(group)::"memory");
    Tile tile = warpgroup_tile<kQueries>(again, group, head, heads, lengths);
    take_place(tile, warpgroup);
    const bool good = all_finite(body.sum_a) && all_finite(body.sum_b) && (tile.empty || has_penalties);
    if (any_lane(!good)) {
      const Items items = items_of<kQueries>(tile);
      clear_blocks(body.sum_a);
      clear_blocks(body.sum_b);
      _Pragma("unroll 1") for (int h = first_head; h < end_head; ++h) {
        const View<StreamedA> a = view_a(tile, h);
        const View<StreamedB> b = view_b(tile, h);
        body.redo(held_of(held_a, tile, Indexed::query_tokens), held_of(held_b, tile, Indexed::queries), a, b,
                  view(lse, Indexed::queries, tile, h), view(delta, Indexed::queries, tile, h),
                  extra_or(a, streamed_a, tile, h / NA_HEAD_GROUP), extra_or(b, streamed_b, tile, h / NA_HEAD_GROUP),
                  extra_count(streamed_a), rpb + Offset(h - first_head) * NA_RPB_SIZE, tile, items);
      }
    }
    body.store(tile, to_a, to_b, scale);
  };
  WarpgroupBackward<kQueries, true, !kQueries && !kTwice> body;
  body.bias_gradient.begin(stages, has_penalties);
  _Pragma("unroll 1") for (int group = blockIdx.x; group < groups; group += gridDim.x) {
    if constexpr (kTwice) {
      WarpgroupBackward<kQueries, false, true> of_b;
      sum_tile(of_b, group);
    }
    sum_tile(body, group);
  }
  WarpgroupBiasGradient::store(stages, drpb, head, heads);
}

}  // namespace natten
