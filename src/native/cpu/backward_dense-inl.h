// The backward pass of long windows along one axis, by dense blocks. Included once per SIMD target.
#if defined(NATTEN_NATIVE_CPU_BACKWARD_DENSE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_BACKWARD_DENSE_INL_H_
#undef NATTEN_NATIVE_CPU_BACKWARD_DENSE_INL_H_
#else
#define NATTEN_NATIVE_CPU_BACKWARD_DENSE_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <vector>

#include "hwy/highway.h"
#include "native/cpu/backward_sweep-inl.h"
#include "native/cpu/tile_dense-inl.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Long windows along one axis: blocks of keys and of queries are dense, those that are not of a window become zeros.
class DenseSweep final : public BackwardSweep {
 public:
  DenseSweep(const backward::Pass& pass, const Task& task) : BackwardSweep(pass, task) {
    is_dense_ = true;
    packs_late_ = true;
    checks_finite_ = true;
    const bool in_chunks = axes_[2].kernel_size > tuning::kDenseChunk;
    in_chunks ? make_row() : make_folded_row();
    if (is_folded_ && group_[2]->key_rows.period < axes_[2].kernel_size + kLanes) {
      // Windows of nearly the whole axis: a tile attends every key, once, where unrolled ones would hold some twice.
      period_ = static_cast<std::int32_t>(group_[2]->key_rows.period);
      region_.part[2].keys = part_[2].owned_keys;
    }
    set_places(part_[2].keys);
    const auto& queries = group_[2]->queries;
    for (const Tile& tile : tiles_) {
      DenseTile dense{};
      for (int lane = 0; lane < tile.count; ++lane) {
        const AxisGroup::Query& query = queries[tile.query + lane];
        dense.start[lane] = static_cast<std::int32_t>(query.keys.start - first_place_);
        dense.end[lane] = static_cast<std::int32_t>(query.keys.end - first_place_);
        dense.bias[lane] = static_cast<std::int32_t>(rpb_index(axes_[2], query.place, query.keys.start));
      }
      dense.keys = {dense.start[0], dense.end[tile.count - 1]};
      dense.common = {dense.start[tile.count - 1], tile.count == kLanes ? dense.end[0] : 0};
      if (period_ > 0) {
        dense.keys = all_keys();
        dense.common = {0, 0};
      }
      dense.is_owned = size_of(owned_of(tile)) > 0;
      dense_tiles_.push_back(dense);
    }
    chunk_ = in_chunks ? tuning::kDenseChunk : places_;
    if (in_chunks) {
      const Span all = all_keys();
      for (std::int64_t begin = all.start; begin < all.end; begin += chunk_) {
        const TileSpan tiles = tiles_of({begin, std::min(begin + chunk_, all.end)});
        ring_tiles_ = std::max(ring_tiles_, tiles.end - tiles.begin);
      }
      ring_start_ = own_size_;
      waits_in_rows_ = static_cast<std::int64_t>(heads_ * ring_tiles_ * dquery_size() * sizeof(float)) > sweep_limit();
      if (!waits_in_rows_) waiting_size_ = dquery_size();
      if (pass.gradients.query.has_value()) own_size_ += heads_ * ring_tiles_ * waiting_size_;
    }
  }

  /// Whether no zero weight met an infinity or a NaN, which would have spread to queries that do not attend it.
  bool is_finite() const { return !met_infinity_; }

 private:
  /// A tile's windows, in places from the first packed one; past the ends of the axis where it wraps.
  struct DenseTile {
    alignas(64) std::int32_t start[Tile::kMaxLanes], end[Tile::kMaxLanes];
    std::int32_t bias[Tile::kMaxLanes];  ///< entry of the first key
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

  /// One row of keys, in chunks: the tiles that attend some keys pass by them, packed again for the next. In between,
  /// the gradients of their queries wait in a ring. All keys of windows that fit the cache are one chunk.
  void multiply_block(std::int64_t k0, const Span& k1s) override {
    const std::int64_t k1 = k1s.start;
    const bool is_owned = is_owned_key(k0, k1);
    const Span owned = !is_owned ? Span{0, 0}
                       : is_folded_
                           ? all_keys()
                           : Span{part_[2].owned_keys.start - first_place_, part_[2].owned_keys.end - first_place_};
    const Span all = all_keys();
    std::size_t started = 0;
    for (std::int64_t begin = all.start; begin < all.end; begin += chunk_) {
      const Span keys{begin, std::min(begin + chunk_, all.end)};
      chunk_start_ = begin;
      for (const KeyTensor& key : keys_) {
        load_rows(region_.key_rows(*key.tensor, region_.task.kv_heads.start, k0, k1, first_place_ + begin),
                  size_of(keys), key.dim, key_memory_ + key.offset, key.pitch());
      }
      check_finite(key_memory_ + keys_[0].offset, size_of(keys) * pitch_);
      std::fill_n(dkey_memory_, dkey_row_size_, 0.0f);
      const TileSpan tiles = tiles_of(keys);
      for (const QueryRow& row : rows_[0]) {
        for (std::size_t t = tiles.begin; t < tiles.end; t += kDenseTiles)
          sweep_pair(row, t, keys, owned, t >= started);
      }
      started = std::max(started, tiles.end);
      if (is_owned) store_keys(k0, k1, {first_place_ + keys.start, first_place_ + keys.end}, dkey_memory_);
    }
    chunk_start_ = 0;
  }

  void sweep_pair(QueryRow row, std::size_t tile, const Span& keys, const Span& owned, bool is_first) {
    float* const packed = row.tiles;
    const std::size_t end = std::min(tile + kDenseTiles, tiles_.size());
    is_first_pack_ = is_first;
    for (std::size_t t = tile; t < end; ++t) {
      pack_tile(row.q0, row.q1, row.head, tiles_[t], packed + (t - tile) * tile_size_);
    }
    const auto waiting = [&](std::size_t t) {
      return own_memory_ + ring_start_ + (row.head * ring_tiles_ + t % ring_tiles_) * waiting_size_;
    };
    const bool is_kept = row.owned && pass_.gradients.query.has_value();
    for (std::size_t t = tile; t < end && is_kept && !is_first; ++t) {
      resume(row.q0, row.q1, row.head, tiles_[t], packed + (t - tile) * tile_size_, waiting(t));
    }
    row.tiles = packed - tile * tile_size_;
    multiply_tiles(row, tile, keys, owned);
    if (!is_kept) return;
    const bool is_last = dense_tiles_[end - 1].keys.end <= keys.end;
    for (std::size_t t = tile; t < end; ++t) {
      float* from = packed + (t - tile) * tile_size_;
      is_last ? store_tile(row.q0, row.q1, row.head, tiles_[t], from)
              : suspend(row.q0, row.q1, row.head, tiles_[t], from, waiting(t));
    }
  }

  /// Some tiles with the keys of a chunk: those of the first tile alone, of both, of the second alone.
  void multiply_tiles(const QueryRow& row, std::size_t tile, Span keys, const Span& owned) {
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
                     [&](int key, int count) { multiply_keys(row, t, tiles, begin + key, count, owned); });
    };
    if (!is_pair) return multiply(tile, 1, first.keys);
    const std::int64_t both = std::min(last.keys.start, first.keys.end);
    multiply(tile, 1, {first.keys.start, both});
    multiply(tile, 2, {last.keys.start, first.keys.end});
    multiply(tile + 1, 1, {std::max(last.keys.start, first.keys.end), last.keys.end});
  }

  void multiply_keys(const QueryRow& row, std::size_t tile, int tiles, std::int64_t key, int count, const Span& owned) {
    float *probabilities = scores_[0], *dlogits = scores_[1];
    float* packed = row.tiles + tile * tile_size_;
    const std::int64_t place = key - chunk_start_;  // in the packed rows
    const float* keys = key_memory_ + keys_[0].offset + place * pitch_;
    const auto call = [&](const float* a, std::int64_t a_row, std::int64_t a_step, const float* b, std::int64_t b_next,
                          std::int64_t b_step, std::int64_t k, float* sums, std::int64_t sums_next,
                          std::int64_t sums_row) {
      return DenseCall{a, a_row, a_step, {b, b + b_next}, b_step, k, {sums, sums + sums_next}, sums_row};
    };
    multiply_dense<false>(
        call(keys, pitch_, 1, packed + query_t_, tile_size_, kLanes, dim_, probabilities, score_size_, kLanes), count,
        tiles);
    multiply_dense<false>(call(key_memory_ + keys_[1].offset + place * value_pitch_, value_pitch_, 1, packed + dout_t_,
                               tile_size_, kLanes, value_dim_, dlogits, score_size_, kLanes),
                          count, tiles);
    for (int t = 0; t < tiles; ++t) {
      const auto finish = pass_.inputs.rpb == nullptr ? &DenseSweep::finish<false> : &DenseSweep::finish<true>;
      (this->*finish)(row, tile + t, key, count, probabilities + t * score_size_, dlogits + t * score_size_);
    }
    if (row.owned && pass_.gradients.query.has_value()) {
      multiply_dense<true>(
          call(keys, 1, pitch_, dlogits, score_size_, kLanes, count, packed + dquery_t_, tile_size_, kLanes),
          static_cast<int>(dim_), tiles);
    }
    const std::int64_t begin = std::max(key, owned.start), end = std::min(key + count, owned.end);
    if (begin >= end) return;
    const std::int64_t scores = (begin - key) * kLanes;
    add_queries(tile, tiles, probabilities + scores, packed + dout_, value_pitch_, begin, end,
                dkey_memory_ + dkeys_[1].offset + (begin - chunk_start_) * value_pitch_);
    add_queries(tile, tiles, dlogits + scores, packed + query_, pitch_, begin, end,
                dkey_memory_ + dkeys_[0].offset + (begin - chunk_start_) * pitch_);
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
    if (period_ > 0) return lanes;
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
    const auto start = hn::LoadU(di, windows.start), size = hn::Sub(hn::LoadU(di, windows.end), start);
    const auto bias0 = hn::LoadU(di, windows.bias), period = hn::Set(di, period_);
    const auto last_bias = hn::Set(di, static_cast<std::int32_t>(2 * axes_[2].kernel_size - 2));
    const auto log2e = hn::Set(d, kLog2E);
    const auto is_empty = are_lowest(lse);
    const Span common = hn::AllFalse(d, is_empty) ? windows.common : Span{0, 0};
    const float* bias = bias_of(pass_.inputs.rpb, row);
    float* dbias = kBias && region_.task.drpb != nullptr && row.owned
                       ? region_.task.drpb + row.head * bias_table_ + row.bias
                       : nullptr;
    const Span owned = owned_of(tiles_[tile]);
    for (int i = 0; i < count; ++i, logits += kLanes, dlogits += kLanes) {
      auto slot = hn::Sub(hn::Set(di, static_cast<std::int32_t>(key + i)), start);
      if (period_ > 0) {
        slot = hn::Add(slot, hn::IfThenElseZero(hn::Lt(slot, hn::Zero(di)), period));
        slot = hn::Sub(slot, hn::IfThenZeroElse(hn::Lt(slot, period), period));
      }
      auto logit = hn::Sub(hn::Load(d, logits), lse);
      if constexpr (kBias) {
        const auto entry = hn::Min(hn::Max(hn::Add(bias0, slot), hn::Zero(di)), last_bias);
        logit = hn::MulAdd(log2e, hn::GatherIndex(d, bias, entry), logit);
      }
      auto probability = exp2_float(logit);
      auto dlogit = hn::Mul(probability, hn::Sub(hn::Load(d, dlogits), delta));
      if (!contains(common, key + i)) {
        const auto outside =
            hn::Or(is_empty, hn::RebindMask(d, hn::Or(hn::Lt(slot, hn::Zero(di)), hn::Not(hn::Lt(slot, size)))));
        probability = hn::IfThenZeroElse(outside, probability);
        dlogit = hn::IfThenZeroElse(outside, dlogit);
      }
      hn::Store(probability, d, logits);
      hn::Store(dlogit, d, dlogits);
      if (dbias == nullptr) continue;
      for (std::int64_t query = owned.start; query < owned.end; ++query) {
        const std::int64_t lane = query - tiles_[tile].query;
        std::int64_t slot = key + i - windows.start[lane];
        if (period_ > 0) slot += slot < 0 ? period_ : slot >= period_ ? -period_ : 0;
        if (0 <= slot && slot < windows.end[lane] - windows.start[lane]) {
          dbias[windows.bias[lane] + slot] += dlogits[lane];
        }
      }
    }
  }

  std::vector<DenseTile> dense_tiles_;
  std::int32_t period_ = 0;       ///< not 0: places so far apart are the same key, which is packed once
  std::size_t ring_tiles_ = 0;    ///< whose gradients wait at a time, of one head
  std::int64_t ring_start_ = 0;   ///< in own_memory_
  std::int64_t chunk_start_ = 0;  ///< place of the first packed key
};

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_BACKWARD_DENSE_INL_H_
