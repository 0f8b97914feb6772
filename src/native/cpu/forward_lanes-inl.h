// The "query lanes" forward kernel, for long windows along one axis. Lanes are consecutive queries; a key serves all of
// them as one broadcast, unpacked. The windows of a tile together are a little longer than one: the waste of this
// design. Included once per SIMD target.
#if defined(NATTEN_NATIVE_CPU_FORWARD_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_FORWARD_LANES_INL_H_
#undef NATTEN_NATIVE_CPU_FORWARD_LANES_INL_H_
#else
#define NATTEN_NATIVE_CPU_FORWARD_LANES_INL_H_
#endif

#include <algorithm>
#include <limits>
#include <vector>

#include "hwy/highway.h"
#include "native/cpu/forward_task-inl.h"
#include "native/cpu/scratch.h"
#include "native/cpu/tile_dense-inl.h"
#include "native/cpu/tile_rows-inl.h"
#include "native/cpu/tile_softmax-inl.h"
#include "native/cpu/tile_values-inl.h"
#include "native/cpu/tuning.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {

class LanesSweep : ForwardTask {
 public:
  LanesSweep(const Pass& pass, const Task& task)
      : ForwardTask(pass, task), tiles_(axes_[2].kernel_size >= tuning::kQueryLanesTwoTiles ? 2 : 1) {}

  void run() {
    if (region_.is_empty()) return;
    const auto& queries = group_[2]->queries;
    const Span& owned = part_[2].queries;
    const std::int64_t together = tiles_ * kLanes;
    std::int64_t most_keys = 0;
    for (std::int64_t q = owned.start; q < owned.end; q += together) {
      const std::int64_t last = std::min(q + together, owned.end) - 1;
      most_keys = std::max(most_keys, queries[last].keys.end - queries[q].keys.start);
    }
    const std::int64_t keys = size_of(part_[2].keys);
    // By the problem, not by the task: the sums of a query must not depend on what else is computed.
    const std::int64_t usual_keys =
        std::min<std::int64_t>((tuning::kQueryLanesPart + 1) * axes_[2].kernel_size, group_[2]->length);
    is_chunked_ = 4 * usual_keys * (pitch_ + value_pitch_) > tuning::kLanesPackedBytes;
    packed_keys_ = is_chunked_ ? std::min<std::int64_t>(keys, tuning::kLanesChunk) : keys;
    block_ = is_chunked_ ? tuning::kLanesBlock : together;
    score_size_ = (is_chunked_ ? packed_keys_ : most_keys) * kLanes;
    query_size_ = round_up(p_.head_dim, 4) * kLanes;
    const std::int64_t block_tiles = block_ / kLanes;
    const Scratch memory([&](Scratch& scratch) {
      keys_ = scratch.take<float>(packed_keys_ * pitch_);
      values_ = scratch.take<float>(packed_keys_ * value_pitch_);
      queries_ = scratch.take<float>(block_tiles * query_size_);
      scores_ = scratch.take<float>(tiles_ * score_size_);
      buffer_ = scratch.take<float>(kLanes * std::max(pitch_, value_pitch_));
      sums_ = scratch.take<float>(is_chunked_ ? block_tiles * RunningSums::size(value_pitch_) : 0);
      end_.take_memory(scratch);
    });

    for (std::int64_t q0 = part_[0].queries.start; q0 < part_[0].queries.end; ++q0) {
      for (std::int64_t q1 = part_[1].queries.start; q1 < part_[1].queries.end; ++q1) {
        for (std::int64_t kv_head = region_.task.kv_heads.start; kv_head < region_.task.kv_heads.end; ++kv_head) {
          if (!is_chunked_) pack_keys_and_values(kv_head, q0, q1, part_[2].keys);
          for (std::int64_t head = kv_head * heads_; head < (kv_head + 1) * heads_; ++head) {
            for (std::int64_t q = owned.start; q < owned.end; q += block_) {
              const Span block{q, std::min(q + block_, owned.end)};
              pack_queries(head, q0, q1, block);
              is_chunked_ ? run_in_chunks(kv_head, head, q0, q1, block) : run_tiles(head, q0, q1, block);
            }
          }
        }
      }
    }
  }

 private:
  void pack_keys_and_values(std::int64_t kv_head, std::int64_t q0, std::int64_t q1, const Span& k2s) {
    packed_ = k2s;
    const auto rows = [&](const Tensor& tensor) {
      return region_.key_rows(tensor, kv_head, group_[0]->queries[q0].keys.start, group_[1]->queries[q1].keys.start,
                              k2s.start);
    };
    load_rows(rows(pass_.inputs.key), size_of(k2s), p_.head_dim, keys_, pitch_);
    load_rows(rows(pass_.inputs.value), size_of(k2s), p_.value_dim, values_, value_pitch_);
  }

  void pack_queries(std::int64_t head, std::int64_t q0, std::int64_t q1, const Span& block) {
    float* packed = queries_;
    for (std::int64_t q = block.start; q < block.end; q += kLanes, packed += query_size_) {
      pack_transposed(region_.query_rows(pass_.inputs.query, head, q0, q1, q),
                      std::min<std::int64_t>(kLanes, block.end - q), p_.head_dim, static_cast<float>(p_.scale) * kLog2E,
                      buffer_, packed, kLanes);
    }
  }

  Span keys_of(const Span& block) const {
    const auto& queries = group_[2]->queries;
    return {queries[block.start].keys.start, queries[block.end - 1].keys.end};
  }

  /// Where windows wrap, the first keys come again after a turn: their products are the same.
  std::int64_t distinct_keys(const Span& keys) const {
    const std::int64_t period = group_[2]->key_rows.period;
    return period == 0 ? size_of(keys) : std::min(size_of(keys), period);
  }

  /// Queries of the block from `tile` on, tiles_ of them, at most kLanes per tile.
  static Span together(const Span& block, std::int64_t tile, std::int64_t tiles) {
    return {block.start + tile * kLanes, std::min(block.start + (tile + tiles) * kLanes, block.end)};
  }

  /// Products of some tiles of the block with keys that are packed.
  HWY_INLINE void multiply(const Span& span, std::int64_t tile, const Span& keys) {
    const int tiles = static_cast<int>((size_of(span) + kLanes - 1) / kLanes);
    const float* queries = queries_ + tile * query_size_;
    multiply_dense<false>({keys_ + (keys.start - packed_.start) * pitch_,
                           pitch_,
                           1,
                           {queries, queries + query_size_},
                           kLanes,
                           p_.head_dim,
                           {scores_, scores_ + score_size_},
                           kLanes},
                          static_cast<int>(size_of(keys)), tiles);
  }

  void run_tiles(std::int64_t head, std::int64_t q0, std::int64_t q1, const Span& block) {
    const Span keys = keys_of(block);
    const std::int64_t distinct = distinct_keys(keys);
    multiply(block, 0, {keys.start, keys.start + distinct});
    for (std::int64_t q = block.start, t = 0; q < block.end; q += kLanes, ++t) {
      const Span span{q, std::min(q + kLanes, block.end)};
      float* scores = scores_ + t * score_size_;
      std::copy_n(scores, (size_of(keys) - distinct) * kLanes, scores + distinct * kLanes);
      const Windows windows = windows_of(span, keys);
      const ScoreRow row = mask_and_bias(head, q0, q1, span, keys, windows, scores);
      const TileVec max = max_of(row);
      normalize(head, queries_ + t * query_size_, max, exp2_row(row, max));
      weigh_values(windows, keys, scores);
      store(head, q0, q1, q, windows.count, buffer_, false);
    }
  }

  /// Windows so long that their keys do not fit a cache: all tiles of a block pass by some keys after the other.
  HWY_NOINLINE void run_in_chunks(std::int64_t kv_head, std::int64_t head, std::int64_t q0, std::int64_t q1,
                                  const Span& block) {
    const TileTag d;
    const std::int64_t block_tiles = (size_of(block) + kLanes - 1) / kLanes;
    const auto sums_of = [&](std::int64_t tile) {
      return RunningSums{sums_ + tile * RunningSums::size(value_pitch_), value_pitch_};
    };
    for (std::int64_t tile = 0; tile < block_tiles; ++tile) sums_of(tile).clear();
    const Span all = keys_of(block);
    for (std::int64_t key = all.start; key < all.end; key = packed_.end) {
      pack_keys_and_values(kv_head, q0, q1, {key, std::min(group_[2]->block_end(key, tuning::kLanesChunk), all.end)});
      for (std::int64_t tile = 0; tile < block_tiles; tile += tiles_) {
        const Span pair = together(block, tile, tiles_), windows_keys = keys_of(pair);
        const Span keys{std::max(windows_keys.start, packed_.start), std::min(windows_keys.end, packed_.end)};
        if (size_of(keys) <= 0) continue;
        multiply(pair, tile, keys);
        for (std::int64_t t = 0; pair.start + t * kLanes < pair.end; ++t) {
          const Span span = together(block, tile + t, 1);
          float* scores = scores_ + t * score_size_;
          const Windows windows = windows_of(span, keys);
          const ScoreRow row = mask_and_bias(head, q0, q1, span, keys, windows, scores);
          const TileVec max = max_of(row);
          alignas(64) float old_factors[kLanes];
          sums_of(tile + t).add(max, exp2_row(row, max), end_.factors, old_factors);
          weigh_values(windows, keys, scores);
          sums_of(tile + t).add_values(windows.count, old_factors, buffer_);
        }
      }
    }
    for (std::int64_t tile = 0; tile < block_tiles; ++tile) {
      const RunningSums sums = sums_of(tile);
      const Span span = together(block, tile, 1);
      const int count = static_cast<int>(size_of(span));
      normalize(head, queries_ + tile * query_size_, hn::Load(d, sums.maxima()), hn::Load(d, sums.totals()));
      sums.scale(count, end_.factors);
      store(head, q0, q1, span.start, count, sums.sums, false);
    }
  }

  /// Of the queries of a tile, among some keys.
  struct Windows {
    int count;
    std::int64_t begin[kLanes], end[kLanes];
  };
  Windows windows_of(const Span& span, const Span& keys) const {
    Windows windows;
    windows.count = static_cast<int>(size_of(span));
    for (int lane = 0; lane < windows.count; ++lane) {
      const Span& window = group_[2]->queries[span.start + lane].keys;
      windows.begin[lane] = std::min(std::max(window.start, keys.start), keys.end) - keys.start;
      windows.end[lane] = std::min(std::max(window.end, keys.start), keys.end) - keys.start;
    }
    return windows;
  }

  /// Makes logits of products.
  ScoreRow mask_and_bias(std::int64_t head, std::int64_t q0, std::int64_t q1, const Span& span, const Span& keys,
                         const Windows& windows, float* scores) const {
    if (pass_.inputs.rpb != nullptr) add_bias(head, q0, q1, span, keys, scores);
    mask(windows.begin, windows.end, windows.count, scores);
    return {scores + windows.begin[0] * kLanes, 1, 0, windows.end[windows.count - 1] - windows.begin[0]};
  }

  /// buffer_ = factors * sum of values weighted by exponentials
  void weigh_values(const Windows& windows, const Span& keys, const float* scores) const {
    ValueRows call{};
    call.place_values = value_pitch_;
    call.pitch = value_pitch_;
    const float* values = values_;
    call.row_values = &values;
    call.value = (keys.start - packed_.start) * value_pitch_;
    for (int q = 0; q < windows.count; q += kQueries) {
      call.probabilities = scores + q;
      call.factor = end_.factors + q;
      call.sums = buffer_ + q * value_pitch_;
      for_each_vectors<kMostVectors>(value_pitch_, [&]<int kVectors>(std::integral_constant<int, kVectors>,
                                                                     std::int64_t channel) {
        ValueRows part = call;
        part.value += channel;
        part.sums += channel;
        add_values_of_row<kVectors>(part, std::min(kQueries, windows.count - q), windows.begin + q, windows.end + q);
      });
    }
  }

  /// Keys that only some of the queries attend. Unused lanes attend none, which nobody reads.
  void mask(const std::int64_t* begin, const std::int64_t* end, int count, float* scores) const {
    const TileTag d;
    const hn::Rebind<std::int32_t, TileTag> di;
    alignas(64) std::int32_t lane_begin[kLanes] = {}, lane_end[kLanes] = {};
    for (int lane = 0; lane < count; ++lane) {
      lane_begin[lane] = static_cast<std::int32_t>(begin[lane]);
      lane_end[lane] = static_cast<std::int32_t>(end[lane]);
    }
    const auto first = hn::Load(di, lane_begin), last = hn::Load(di, lane_end);
    const auto lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
    const auto mask_keys = [&](std::int64_t from, std::int64_t to) {
      for (std::int64_t key = from; key < to; ++key) {
        const auto k = hn::Set(di, static_cast<std::int32_t>(key));
        const auto outside = hn::RebindMask(d, hn::Or(hn::Gt(first, k), hn::Not(hn::Gt(last, k))));
        hn::Store(hn::IfThenElse(outside, lowest, hn::Load(d, scores + key * kLanes)), d, scores + key * kLanes);
      }
    };
    // All lanes hold the keys between the last window's start and the first window's end.
    const std::int64_t common = std::max(begin[count - 1], begin[0]), common_end = std::max(end[0], common);
    mask_keys(begin[0], std::min(common, end[count - 1]));
    mask_keys(std::min(common_end, end[count - 1]), end[count - 1]);
  }

  void add_bias(std::int64_t head, std::int64_t q0, std::int64_t q1, const Span& span, const Span& keys,
                float* scores) const {
    const float* bias = bias_of(head, q0, q1);
    for (std::int64_t q = span.start; q < span.end; ++q) {
      const AxisGroup::Query& query = group_[2]->queries[q];
      const Span window{std::max(query.keys.start, keys.start), std::min(query.keys.end, keys.end)};
      float* score = scores + (window.start - keys.start) * kLanes + (q - span.start);
      const float* entry = bias + rpb_index(axes_[2], query.place, window.start);
      for (std::int64_t k = 0; k < size_of(window); ++k) score[k * kLanes] += kLog2E * entry[k];
    }
  }

  const int tiles_;  ///< at a time

  bool is_chunked_;  ///< not all keys of the part are packed at a time, but packed_keys_
  std::int64_t packed_keys_;
  std::int64_t block_;                    ///< queries that are packed at a time
  std::int64_t score_size_, query_size_;  ///< floats of the scores and of the packed queries of a tile
  Span packed_{0, 0};                     ///< places of the packed keys
  float *keys_, *values_, *queries_, *scores_, *buffer_, *sums_;
};

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_FORWARD_LANES_INL_H_
