#include "native/cpu/backward.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "native/cpu/backward_tiled.cpp"
#include "hwy/foreach_target.h"
// Highway asks that these come after foreach_target.h.
#include "hwy/highway.h"
#include "native/cpu/dispatch.h"
#include "native/cpu/tile_dense-inl.h"
#include "native/cpu/tile_softmax-inl.h"
#include "native/cpu/tile_sweep-inl.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace {

/// Recomputes the probabilities P of a tile from lse, and with dP = dout . v and delta = rowsum(out * dout) - dlse:
/// dS = P (dP - delta), dq = scale dS K, dk = scale dS^T Q, dv = P^T dout.
class BackwardSweep : public TileSweep {
 public:
  BackwardSweep(const AttentionInputs& inputs, const SavedForward& saved, const backward::Gradients& gradients,
                const Task& task)
      : TileSweep(inputs.problem, task, gradients.wanted()),
        inputs_(inputs),
        saved_(saved),
        gradients_(gradients),
        scale_(static_cast<float>(inputs.problem.scale)),
        outputs_(output_grid(inputs.problem)),
        dim_(inputs.problem.head_dim),
        value_dim_(inputs.problem.value_dim),
        pitch_(round_up(dim_, kLanes)),
        value_pitch_(round_up(value_dim_, kLanes)) {
    keys_[0] = {&inputs.key, dim_};
    keys_[1] = {&inputs.value, value_dim_};
    if (gradients.key != nullptr) {
      dkeys_[0] = {gradients.key, dim_};
      dkeys_[1] = {gradients.value, value_dim_};
    }
    const Problem& p = inputs.problem;
    is_streamed_ = p.batch * p.tokens() * p.heads * dim_ * 4 >= tuning::kStreamBytes;
    widest_ = std::max(dim_, value_dim_);
    const auto place = [this](std::int64_t floats) {
      const std::int64_t at = tile_size_;
      tile_size_ += round_up(floats, kLanes);
      return at;
    };
    query_t_ = place(round_up(dim_, 4) * kLanes);
    dout_t_ = place(round_up(value_dim_, 4) * kLanes);
    dquery_t_ = place(round_up(dim_, 4) * kLanes);
    query_ = place(pitch_ * kLanes);
    dout_ = place(value_pitch_ * kLanes);
    lse_ = place(kLanes);
    delta_ = place(kLanes);
  }

 protected:
  void pack_tile(std::int64_t q0, std::int64_t q1, std::int64_t head, const Tile& tile, float* to) override {
    const TileTag d;
    float *query = to + query_, *dout = to + dout_;
    load_tile(query_rows(inputs_.query, true, q0, q1, tile.query, head), tile, dim_, query, pitch_);
    load_tile(query_rows(saved_.dout, false, q0, q1, tile.query, head), tile, value_dim_, dout, value_pitch_);
    load_tile(query_rows(saved_.out, false, q0, q1, tile.query, head), tile, value_dim_, buffer_, value_pitch_);
    // The scale belongs to the logits, which are base-2 logarithms here, and to dk.
    transpose_in(query, pitch_, round_up(dim_, 4), scale_ * kLog2E, to + query_t_, kLanes);
    const auto scale = hn::Set(d, scale_);
    for (std::int64_t c = 0; c < kLanes * pitch_; c += kLanes) {
      hn::Store(hn::Mul(scale, hn::Load(d, query + c)), d, query + c);
    }
    transpose_in(dout, value_pitch_, round_up(value_dim_, 4), 1.0f, to + dout_t_, kLanes);
    std::fill_n(to + dquery_t_, kLanes * round_up(dim_, 4), 0.0f);
    std::fill_n(to + lse_, kLanes, 0.0f);
    std::fill_n(to + delta_, kLanes, 0.0f);

    const auto& queries = group_[2]->queries;
    const std::int64_t row =
        outputs_.index(task_.plan->batch, {group_[0]->queries[q0].output, group_[1]->queries[q1].output, 0});
    for (int lane = 0; lane < tile.count; ++lane) {
      auto sum = hn::Zero(d);
      for (std::int64_t c = lane * value_pitch_; c < (lane + 1) * value_pitch_; c += kLanes) {
        sum = hn::MulAdd(hn::Load(d, buffer_ + c), hn::Load(d, dout + c), sum);
      }
      const std::int64_t flat =
          (row + queries[tile.query + lane].output) * problem_.heads + task_.kv_heads.start * heads_ + head;
      to[lse_ + lane] = saved_.lse[flat] * kLog2E;
      to[delta_ + lane] = hn::GetLane(hn::SumOfLanes(d, sum)) - (saved_.dlse == nullptr ? 0.0f : saved_.dlse[flat]);
    }
    if (has_empty(to)) {
      met_empty_ = true;
      clear_empty_rows(to + lse_, tile.count, query, pitch_);
      clear_empty_rows(to + lse_, tile.count, dout, value_pitch_);
    }
  }

  /// Whether the tile has a query all of whose logits are -inf: its weights and gradients are zero.
  bool has_empty(const float* packed) const {
    const TileTag d;
    return !hn::AllFalse(d, are_lowest(hn::Load(d, packed + lse_)));
  }

  void store_tile(std::int64_t q0, std::int64_t q1, std::int64_t head, const Tile& tile, float* from) override {
    if (met_empty_ && has_empty(from)) {
      const TileTag d;
      const auto is_empty = are_lowest(hn::Load(d, from + lse_));
      for (std::int64_t c = dquery_t_; c < dquery_t_ + kLanes * dim_; c += kLanes) {
        hn::Store(hn::IfThenZeroElse(is_empty, hn::Load(d, from + c)), d, from + c);
      }
    }
    store_transposed(from + dquery_t_, dim_, scale_, tile, *gradients_.query, true, q0, q1, head);
  }

  void multiply(const Tile& tile, std::int64_t tile_start, const QueryRow* rows, int count, int owned, int slot,
                int slots, std::int64_t block_row, bool owned_key) override {
    const auto point_to = [&](float** pointers, std::int64_t offset) {
      for (int r = 0; r < count; ++r) pointers[r] = rows[r].tiles + tile_start + offset;
    };
    const float* keys = packed_keys(0, tile, block_row) + slot;
    float *probabilities = scores_[0], *dlogits = scores_[1];
    point_to(pointers_[0], query_t_);
    point_to(pointers_[1], dout_t_);
    call_tiles(kMultiply, tile, keys, dim_, pointers_[0], count, slots, probabilities);
    call_tiles(kMultiply, tile, packed_keys(1, tile, block_row) + slot, value_dim_, pointers_[1], count, slots,
               dlogits);
    for (int r = 0; r < count; ++r) {
      const bool is_masked = tile.is_masked || (met_empty_ && has_empty(rows[r].tiles + tile_start));
      const auto finish =
          inputs_.rpb == nullptr
              ? (is_masked ? &BackwardSweep::finish_scores<false, true> : &BackwardSweep::finish_scores<false, false>)
              : (is_masked ? &BackwardSweep::finish_scores<true, true> : &BackwardSweep::finish_scores<true, false>);
      (this->*finish)(tile, rows[r], tile_start, slot, slots, probabilities + r * score_size_,
                      dlogits + r * score_size_);
      add_bias_gradient(tile, rows[r], slot, slots, dlogits + r * score_size_);
    }
    if (owned > 0) {
      point_to(pointers_[2], dquery_t_);
      call_tiles(kAddKeys, tile, keys, dim_, pointers_[2], owned, slots, dlogits);
    }
    if (owned_key) {
      point_to(pointers_[0], dout_);
      point_to(pointers_[1], query_);
      call_keys(tile, probabilities, pointers_[0], count, slots, summed_keys(1, tile, block_row) + slot * value_pitch_,
                value_pitch_);
      call_keys(tile, dlogits, pointers_[1], count, slots, summed_keys(0, tile, block_row) + slot * pitch_, pitch_);
    }
  }

  /// From logits and dP to P and dS.
  template <bool kBias, bool kMasked>
  void finish_scores(const Tile& tile, const QueryRow& row, std::int64_t tile_start, int slot, int slots, float* logits,
                     float* dlogits) const {
    const TileTag d;
    const auto lse = hn::Load(d, row.tiles + tile_start + lse_);
    const auto delta = hn::Load(d, row.tiles + tile_start + delta_);
    const auto log2e = hn::Set(d, kLog2E);
    const auto is_empty = are_lowest(lse);
    const float* bias = bias_of(inputs_.rpb, row);
    for (int s = 0; s < slots; ++s, logits += kLanes, dlogits += kLanes) {
      auto logit = hn::Sub(hn::Load(d, logits), lse);
      if constexpr (kBias) logit = hn::MulAdd(log2e, bias_lanes(tile, bias + slot + s), logit);
      auto probability = exp2_float(logit);
      auto dlogit = hn::Mul(probability, hn::Sub(hn::Load(d, dlogits), delta));
      if constexpr (kMasked) {
        const auto empty = hn::Or(is_empty, empty_lanes(tile, slot + s));
        probability = hn::IfThenZeroElse(empty, probability);
        dlogit = hn::IfThenZeroElse(empty, dlogit);
      }
      hn::Store(probability, d, logits);
      hn::Store(dlogit, d, dlogits);
    }
  }

  const AttentionInputs& inputs_;
  const SavedForward& saved_;
  const backward::Gradients& gradients_;
  const float scale_;
  const Grid outputs_;
  const std::int64_t dim_, value_dim_, pitch_, value_pitch_;
  // Places in a packed tile: transposed [channel][lane]; [lane][pitch]; [lane].
  std::int64_t query_t_, dout_t_, dquery_t_, query_, dout_, lse_, delta_;
  bool met_empty_ = false;  ///< some tile has_empty()
};

/// Long windows along one axis: blocks of keys and of queries are dense, those that are not of a window become zeros.
class DenseSweep final : public BackwardSweep {
 public:
  DenseSweep(const AttentionInputs& inputs, const SavedForward& saved, const backward::Gradients& gradients,
             const Task& task)
      : BackwardSweep(inputs, saved, gradients, task) {
    is_dense_ = true;
    packs_late_ = true;
    const auto& queries = group_[2]->queries;
    for (const Tile& tile : tiles_) {
      DenseTile dense{};
      for (int lane = 0; lane < tile.count; ++lane) {
        const AxisGroup::Query& query = queries[tile.query + lane];
        dense.start[lane] = static_cast<std::int32_t>(query.keys.start - first_place_);
        dense.end[lane] = static_cast<std::int32_t>(query.keys.end - first_place_);
        dense.bias[lane] = static_cast<std::int32_t>(rpb_index(axes_[2], query.place, first_place_));
      }
      dense.keys = {dense.start[0], dense.end[tile.count - 1]};
      dense.common = {dense.start[tile.count - 1], tile.count == kLanes ? dense.end[0] : 0};
      dense.is_owned = size_of(owned_of(tile)) > 0;
      dense_tiles_.push_back(dense);
    }
    if (axes_[2].kernel_size > tuning::kDenseChunk) {
      chunk_ = tuning::kDenseChunk;
      const Span all = all_keys();
      for (std::int64_t begin = all.start; begin < all.end; begin += chunk_) {
        const TileSpan tiles = tiles_of({begin, std::min(begin + chunk_, all.end)});
        ring_tiles_ = std::max(ring_tiles_, tiles.end - tiles.begin);
      }
      if (gradients.query != nullptr) extra_ = heads_ * ring_tiles_ * dquery_size();
    }
  }

  /// Whether no zero weight met an infinity or a NaN, which would have spread to queries that do not attend it.
  bool is_finite() const { return is_finite_; }

 private:
  /// A tile's windows, in places from the first packed one.
  struct DenseTile {
    alignas(64) std::int32_t start[Tile::kMaxLanes], end[Tile::kMaxLanes];
    std::int32_t bias[Tile::kMaxLanes];  ///< entry of the first packed place
    Span keys, common;                   ///< of any and of all lanes
    bool is_owned;
  };
  struct TileSpan {
    std::size_t begin, end;  ///< multiples of kDenseTiles; the last tiles may not exist
  };

  /// Pairs of tiles that attend any of the keys.
  TileSpan tiles_of(const Span& keys) const {
    const auto is_before = [](const DenseTile& tile, std::int64_t key) { return tile.keys.end <= key; };
    const auto starts_before = [](const DenseTile& tile, std::int64_t key) { return tile.keys.start < key; };
    const auto begin = dense_tiles_.begin(), end = dense_tiles_.end();
    const std::size_t first = std::lower_bound(begin, end, keys.start, is_before) - begin;
    const std::size_t last = std::lower_bound(begin, end, keys.end, starts_before) - begin;
    return {first / kDenseTiles * kDenseTiles, (last + kDenseTiles - 1) / kDenseTiles * kDenseTiles};
  }
  Span all_keys() const { return {part_[2].keys.start - first_place_, part_[2].keys.end - first_place_}; }
  std::int64_t dquery_size() const { return kLanes * round_up(dim_, 4); }

  static bool all_finite(const float* from, std::int64_t count) {
    const TileTag d;
    auto sum = hn::Zero(d);
    for (std::int64_t i = 0; i < count; i += kLanes) sum = hn::MulAdd(hn::Load(d, from + i), hn::Zero(d), sum);
    return hn::GetLane(hn::SumOfLanes(d, sum)) == 0.0f;
  }

  void check_keys(std::int64_t block_row, const Span& places) {
    const float* row = key_memory_ + block_row * key_row_size_ + keys_[0].offset;
    is_finite_ &= all_finite(row + places.start * pitch_, size_of(places) * pitch_);
  }
  void check_queries(const float* tile) {
    is_finite_ &= all_finite(tile + query_, pitch_ * kLanes) && all_finite(tile + dout_, value_pitch_ * kLanes);
  }

  void multiply_block(std::int64_t k0, const Span& k1s) override {
    for (std::int64_t k1 = k1s.start; k1 < k1s.end; ++k1) {
      const std::int64_t block_row = k1 - k1s.start;
      const Span owned = is_owned_key(k0, k1)
                             ? Span{part_[2].owned_keys.start - first_place_, part_[2].owned_keys.end - first_place_}
                             : Span{0, 0};
      if (chunk_ > 0) {
        sweep_chunks(k0, k1, owned);
        continue;
      }
      check_keys(block_row, all_keys());
      for (const QueryRow& row : rows_[block_row]) sweep_tiles(block_row, row, owned);
    }
  }

  void pack_pair(const QueryRow& row, std::size_t tile) {
    for (std::size_t i = tile; i < std::min(tile + kDenseTiles, tiles_.size()); ++i) {
      float* to = row.tiles + (i - tile) * tile_size_;
      pack_tile(row.q0, row.q1, row.head, tiles_[i], to);
      check_queries(to);
    }
  }

  /// Windows that fit the cache: every tile is packed, done with and stored.
  void sweep_tiles(std::int64_t block_row, QueryRow row, const Span& owned) {
    float* const packed = row.tiles;
    for (std::size_t t = 0; t < tiles_.size(); t += kDenseTiles) {
      row.tiles = packed;
      pack_pair(row, t);
      row.tiles = packed - t * tile_size_;
      multiply_tiles(block_row, row, t, {0, places_}, owned);
      for (std::size_t i = t; i < std::min(t + kDenseTiles, tiles_.size()); ++i) {
        if (row.owned && gradients_.query != nullptr) {
          store_tile(row.q0, row.q1, row.head, tiles_[i], packed + (i - t) * tile_size_);
        }
      }
    }
  }

  /// Longer ones: the tiles that attend some keys pass by them, packed again for the next. In between, the gradients of
  /// their queries wait in a ring.
  void sweep_chunks(std::int64_t k0, std::int64_t k1, const Span& owned) {
    const Span all = all_keys();
    std::size_t started = 0;
    for (std::int64_t begin = all.start; begin < all.end; begin += chunk_) {
      const Span keys{begin, std::min(begin + chunk_, all.end)};
      chunk_start_ = begin;
      for (const KeyTensor& key : keys_) {
        load_rows(token_rows(*key.tensor, k0, k1, first_place_ + begin), size_of(keys), key.dim,
                  key_memory_ + key.offset, key.pitch());
      }
      check_keys(0, {0, size_of(keys)});
      std::fill_n(dkey_memory_, dkey_row_size_, 0.0f);
      const TileSpan tiles = tiles_of(keys);
      for (const QueryRow& row : rows_[0]) {
        for (std::size_t t = tiles.begin; t < tiles.end; t += kDenseTiles)
          sweep_pair(row, t, keys, owned, t >= started);
      }
      started = std::max(started, tiles.end);
      const Span ours{std::max(owned.start, keys.start), std::min(owned.end, keys.end)};
      for (const KeyTensor& key : dkeys_) {
        if (key.tensor == nullptr || size_of(ours) <= 0) continue;
        store_rows(dkey_memory_ + key.offset + (ours.start - begin) * key.pitch(), key.pitch(), size_of(ours), key.dim,
                   token_rows(*key.tensor, k0, k1, first_place_ + ours.start), is_streamed_);
      }
    }
    chunk_start_ = 0;
  }

  void sweep_pair(QueryRow row, std::size_t tile, const Span& keys, const Span& owned, bool is_first) {
    float* const packed = row.tiles;
    pack_pair(row, tile);
    const std::size_t end = std::min(tile + kDenseTiles, tiles_.size());
    const auto waiting = [&](std::size_t t) {
      return extra_memory_ + (row.head * ring_tiles_ + t % ring_tiles_) * dquery_size();
    };
    const bool is_kept = row.owned && gradients_.query != nullptr;
    for (std::size_t t = tile; t < end && is_kept && !is_first; ++t) {
      std::copy_n(waiting(t), dquery_size(), packed + (t - tile) * tile_size_ + dquery_t_);
    }
    row.tiles = packed - tile * tile_size_;
    multiply_tiles(0, row, tile, keys, owned);
    if (!is_kept) return;
    const bool is_last = dense_tiles_[end - 1].keys.end <= keys.end;
    for (std::size_t t = tile; t < end; ++t) {
      float* from = packed + (t - tile) * tile_size_;
      is_last ? store_tile(row.q0, row.q1, row.head, tiles_[t], from)
              : void(std::copy_n(from + dquery_t_, dquery_size(), waiting(t)));
    }
  }

  /// Some tiles with the keys of a chunk: those of the first tile alone, of both, of the second alone.
  void multiply_tiles(std::int64_t block_row, const QueryRow& row, std::size_t tile, Span keys, const Span& owned) {
    const DenseTile& first = dense_tiles_[tile];
    const bool is_pair = tile + 1 < dense_tiles_.size();
    const DenseTile& last = dense_tiles_[is_pair ? tile + 1 : tile];
    // Tiles without an owned query only matter to owned keys.
    if (!row.owned || !(first.is_owned || last.is_owned)) {
      keys = {std::max(keys.start, owned.start), std::min(keys.end, owned.end)};
    }
    const auto multiply = [&](std::size_t t, int tiles, const Span& range) {
      const std::int64_t begin = std::max(keys.start, range.start), end = std::min(keys.end, range.end);
      if (begin >= end) return;
      for_each_piece(static_cast<int>(end - begin), tuning::kDenseKeys,
                     [&](int key, int count) { multiply_keys(block_row, row, t, tiles, begin + key, count, owned); });
    };
    if (!is_pair) return multiply(tile, 1, first.keys);
    const std::int64_t both = std::min(last.keys.start, first.keys.end);
    multiply(tile, 1, {first.keys.start, both});
    multiply(tile, 2, {last.keys.start, first.keys.end});
    multiply(tile + 1, 1, {std::max(last.keys.start, first.keys.end), last.keys.end});
  }

  void multiply_keys(std::int64_t block_row, const QueryRow& row, std::size_t tile, int tiles, std::int64_t key,
                     int count, const Span& owned) {
    float *probabilities = scores_[0], *dlogits = scores_[1];
    float* packed = row.tiles + tile * tile_size_;
    const float* key_row = key_memory_ + block_row * key_row_size_;
    const std::int64_t place = key - chunk_start_;  // in the packed rows
    const float* keys = key_row + keys_[0].offset + place * pitch_;
    const auto call = [&](const float* a, std::int64_t a_row, std::int64_t a_step, const float* b, std::int64_t b_next,
                          std::int64_t b_step, std::int64_t k, float* sums, std::int64_t sums_next,
                          std::int64_t sums_row) {
      return DenseCall{a, a_row, a_step, {b, b + b_next}, b_step, k, {sums, sums + sums_next}, sums_row};
    };
    multiply_dense<false>(
        call(keys, pitch_, 1, packed + query_t_, tile_size_, kLanes, dim_, probabilities, score_size_, kLanes), count,
        tiles);
    multiply_dense<false>(call(key_row + keys_[1].offset + place * value_pitch_, value_pitch_, 1, packed + dout_t_,
                               tile_size_, kLanes, value_dim_, dlogits, score_size_, kLanes),
                          count, tiles);
    for (int t = 0; t < tiles; ++t) {
      const auto finish = inputs_.rpb == nullptr ? &DenseSweep::finish<false> : &DenseSweep::finish<true>;
      (this->*finish)(row, tile + t, key, count, probabilities + t * score_size_, dlogits + t * score_size_);
    }
    if (row.owned && gradients_.query != nullptr) {
      multiply_dense<true>(
          call(keys, 1, pitch_, dlogits, score_size_, kLanes, count, packed + dquery_t_, tile_size_, kLanes),
          static_cast<int>(dim_), tiles);
    }
    const std::int64_t begin = std::max(key, owned.start), end = std::min(key + count, owned.end);
    if (begin >= end) return;
    float* sums = dkey_memory_ + block_row * dkey_row_size_;
    const std::int64_t scores = (begin - key) * kLanes;
    add_queries(tile, tiles, probabilities + scores, packed + dout_, value_pitch_, begin, end,
                sums + dkeys_[1].offset + (begin - chunk_start_) * value_pitch_);
    add_queries(tile, tiles, dlogits + scores, packed + query_, pitch_, begin, end,
                sums + dkeys_[0].offset + (begin - chunk_start_) * pitch_);
  }

  /// sums[key] += scores[key][query] * query, over the queries of the tiles
  void add_queries(std::size_t tile, int tiles, const float* scores, const float* queries, std::int64_t pitch,
                   std::int64_t begin, std::int64_t end, float* sums) {
    for (std::int64_t c = 0; c < pitch; c += kMostVecs * kLanes) {
      const int vecs = c + kLanes < pitch ? 2 : 1;
      for_each_piece(static_cast<int>(end - begin), most_dense_rows(vecs), [&](int key, int keys) {
        float* to = sums + key * pitch + c;
        const auto add = [&](int t, int segments, const Span& lanes) {
          if (size_of(lanes) <= 0) return;
          const float* from = queries + t * tile_size_ + lanes.start * pitch + c;
          multiply_dense<true>({scores + t * score_size_ + key * kLanes + lanes.start,
                                kLanes,
                                1,
                                {from, from + kLanes},
                                pitch,
                                size_of(lanes),
                                {to, to + kLanes},
                                pitch,
                                segments,
                                score_size_,
                                tile_size_},
                               keys, vecs);
        };
        Span lanes[kDenseTiles];
        bool all = tiles > 1;
        for (int t = 0; t < tiles; ++t) {
          lanes[t] = lanes_of(tile + t, {begin + key, begin + key + keys});
          all &= size_of(lanes[t]) == kLanes;
        }
        if (all) return add(0, tiles, lanes[0]);
        for (int t = 0; t < tiles; ++t) add(t, 1, lanes[t]);
      });
    }
  }

  /// Queries of a tile whose windows hold any of the keys.
  Span lanes_of(std::size_t tile, const Span& keys) const {
    const DenseTile& windows = dense_tiles_[tile];
    Span lanes{0, tiles_[tile].count};
    while (lanes.start < lanes.end && windows.end[lanes.start] <= keys.start) ++lanes.start;
    while (lanes.start < lanes.end && windows.start[lanes.end - 1] >= keys.end) --lanes.end;
    return lanes;
  }

  /// From logits and dP to P and dS.
  template <bool kBias>
  void finish(const QueryRow& row, std::size_t tile, std::int64_t key, int count, float* logits, float* dlogits) const {
    const TileTag d;
    const hn::Rebind<std::int32_t, TileTag> di;
    const DenseTile& windows = dense_tiles_[tile];
    const float* packed = row.tiles + tile * tile_size_;
    const auto lse = hn::Load(d, packed + lse_), delta = hn::Load(d, packed + delta_);
    const auto start = hn::LoadU(di, windows.start), end = hn::LoadU(di, windows.end);
    const auto bias0 = hn::LoadU(di, windows.bias);
    const auto last_bias = hn::Set(di, static_cast<std::int32_t>(2 * axes_[2].kernel_size - 2));
    const auto log2e = hn::Set(d, kLog2E);
    const auto is_empty = are_lowest(lse);
    const Span common = hn::AllFalse(d, is_empty) ? windows.common : Span{0, 0};
    const float* bias = bias_of(inputs_.rpb, row);
    float* dbias =
        kBias && task_.drpb != nullptr && row.owned ? task_.drpb + row.head * bias_table_ + row.bias : nullptr;
    const Span owned = owned_of(tiles_[tile]);
    for (int i = 0; i < count; ++i, logits += kLanes, dlogits += kLanes) {
      const auto k = hn::Set(di, static_cast<std::int32_t>(key + i));
      auto logit = hn::Sub(hn::Load(d, logits), lse);
      if constexpr (kBias) {
        const auto entry = hn::Min(hn::Max(hn::Add(bias0, k), hn::Zero(di)), last_bias);
        logit = hn::MulAdd(log2e, hn::GatherIndex(d, bias, entry), logit);
      }
      auto probability = exp2_float(logit);
      auto dlogit = hn::Mul(probability, hn::Sub(hn::Load(d, dlogits), delta));
      if (!contains(common, key + i)) {
        const auto outside = hn::Or(is_empty, hn::RebindMask(d, hn::Or(hn::Gt(start, k), hn::Not(hn::Gt(end, k)))));
        probability = hn::IfThenZeroElse(outside, probability);
        dlogit = hn::IfThenZeroElse(outside, dlogit);
      }
      hn::Store(probability, d, logits);
      hn::Store(dlogit, d, dlogits);
      if (dbias == nullptr) continue;
      for (std::int64_t query = owned.start; query < owned.end; ++query) {
        const std::int64_t lane = query - tiles_[tile].query;
        if (windows.start[lane] <= key + i && key + i < windows.end[lane]) {
          dbias[windows.bias[lane] + key + i] += dlogits[lane];
        }
      }
    }
  }

  std::vector<DenseTile> dense_tiles_;
  std::size_t ring_tiles_ = 0;    ///< whose gradients wait at a time, of one head
  std::int64_t chunk_start_ = 0;  ///< place of the first packed key
  bool is_finite_ = true;
};

void run_backward(const AttentionInputs& inputs, const SavedForward& saved, const backward::Gradients& gradients,
                  const Task& task) {
  const auto& axes = inputs.problem.axes;
  if (axes[0].kernel_size == 1 && axes[1].kernel_size == 1 && axes[2].kernel_size >= tuning::kDenseKernel) {
    const std::int64_t tables = inputs.problem.heads / inputs.problem.kv_heads * (2 * axes[2].kernel_size - 1);
    std::vector<float> before;
    if (task.drpb != nullptr) before.assign(task.drpb, task.drpb + tables);
    DenseSweep sweep(inputs, saved, gradients, task);
    sweep.run();
    if (sweep.is_finite()) return;
    std::copy(before.begin(), before.end(), task.drpb);
  }
  BackwardSweep(inputs, saved, gradients, task).run();
}

}  // namespace
}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace natten::cpu {

HWY_EXPORT(run_backward);

void backward::tiled(const AttentionInputs& inputs, const SavedForward& saved, const Gradients& gradients) {
  const Problem& p = inputs.problem;
  const Wanted wanted = gradients.wanted();
  const bool is_strided = p.axes[0].stride * p.axes[1].stride * p.axes[2].stride > 1;
  const Grid tokens = token_grid(p);
  if (wanted.query && (is_strided || inputs.lengths)) fill(*gradients.query, tokens, p.heads, p.head_dim, 0.0f);
  if (wanted.key_value && inputs.lengths) {
    fill(*gradients.key, tokens, p.kv_heads, p.head_dim, 0.0f);
    fill(*gradients.value, tokens, p.kv_heads, p.value_dim, 0.0f);
  }
  const double products = 2.0 + (wanted.query ? 1.0 : 0.0) + (wanted.key_value ? 2.0 : 0.0);
  const double flops = products * static_cast<double>(p.batch * p.heads * p.queries()) *
                       static_cast<double>(p.kernel_volume() * (p.head_dim + p.value_dim));
  run_tasks(inputs, flops, gradients.rpb, [&](const Task& task) {
    NATTEN_DISPATCH(run_backward)(inputs, saved, gradients, task);
  });
}

}  // namespace natten::cpu
#endif  // HWY_ONCE
