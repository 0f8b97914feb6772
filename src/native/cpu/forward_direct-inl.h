// The "direct" forward kernel, for short windows along one axis, where memory binds: keys and values are copied for a
// tile, not transposed. Lanes are channels while queries meet keys, then queries in the softmax, then channels again
// for the values. Borders, empty slots and dilation are only other keys. Included once per SIMD target.
#if defined(NATTEN_NATIVE_CPU_FORWARD_DIRECT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_FORWARD_DIRECT_INL_H_
#undef NATTEN_NATIVE_CPU_FORWARD_DIRECT_INL_H_
#else
#define NATTEN_NATIVE_CPU_FORWARD_DIRECT_INL_H_
#endif

#include <algorithm>
#include <limits>
#include <vector>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "native/cpu/forward_task-inl.h"
#include "native/cpu/scratch.h"
#include "native/cpu/tile_direct-inl.h"
#include "native/cpu/tile_products-inl.h"
#include "native/cpu/tile_rows-inl.h"
#include "native/cpu/tile_softmax-inl.h"
#include "native/cpu/tuning.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {

class DirectSweep : ForwardTask {
 public:
  DirectSweep(const Pass& pass, const Task& task)
      : ForwardTask(pass, task),
        is_far_(p_.batch * p_.key_tokens() * p_.heads * p_.head_dim * element_size(p_.query_type) >=
                tuning::kFarBytes) {}

  void run() {
    if (region_.is_empty()) return;
    const Span &q0s = region_.part[0].queries, &q1s = region_.part[1].queries, &q2s = region_.part[2].queries;
    std::int64_t slots = 0, places = 0;
    for (std::int64_t q = q2s.start; q < q2s.end; q += kLanes) {
      tiles_.push_back(make_tile({q, std::min(q + kLanes, q2s.end)}));
      slots = std::max(slots, tiles_.back().slots);
      places = std::max(places, tiles_.back().places);
    }
    const Scratch memory([&](Scratch& scratch) {
      queries_ = scratch.take<float>(kLanes * pitch_);
      sums_ = scratch.take<float>(kLanes * value_pitch_);
      partial_ = scratch.take<float>(slots * kLanes * kLanes);
      scores_ = scratch.take<float>(slots * kLanes);
      end_.take_memory(scratch);
      if (pass_.extra.count() > 0) query_t_ = scratch.take<float>(kLanes * round_up(p_.head_dim, 4));
      rows_ = scratch.take<float>(places * std::max(pitch_, value_pitch_));
    });

    const Span& kv_heads = region_.task.kv_heads;
    for (std::int64_t q0 = q0s.start; q0 < q0s.end; ++q0) {
      for (std::int64_t q1 = q1s.start; q1 < q1s.end; ++q1) {
        for (std::size_t tile = 0; tile < tiles_.size(); ++tile) {
          // Heads inside: the order of memory.
          for (std::int64_t head = kv_heads.start * heads_; head < kv_heads.end * heads_; ++head) {
            run_tile(head, q0, q1, tile);
          }
        }
      }
    }
    if (is_streamed_) hwy::FlushStream();
  }

 private:
  DirectTile make_tile(const Span& span) const {
    const auto& queries = region_.group[2]->queries;
    DirectTile tile{};
    tile.query = span.start;
    tile.count = static_cast<int>(size_of(span));
    tile.place = queries[span.start].keys.start;
    tile.places = queries[span.end - 1].keys.end - tile.place;
    for (int lane = 0; lane < kLanes; ++lane) {
      const AxisGroup::Query& query = queries[span.start + (lane < tile.count ? lane : 0)];
      tile.key[lane] = query.keys.start - tile.place;
      tile.keys[lane] = size_of(query.keys);
      tile.bias[lane] = static_cast<std::int32_t>(rpb_index(axes_[2], query.place, query.keys.start));
      tile.slots = std::max(tile.slots, tile.keys[lane]);
    }
    for (int lane = 0; lane < kLanes; ++lane) tile.is_ragged |= tile.keys[lane] < tile.slots;
    return tile;
  }

  void run_tile(std::int64_t head, std::int64_t q0, std::int64_t q1, std::size_t index) {
    const DirectTile& tile = tiles_[index];
    load_rows(region_.query_rows(pass_.inputs.query, head, q0, q1, tile.query), tile.count, p_.head_dim, queries_,
              pitch_);
    for (int lane = tile.count; lane < kLanes; ++lane) std::copy_n(queries_, pitch_, queries_ + lane * pitch_);
    load_rows(key_rows(pass_.inputs.key, head, q0, q1, tile.place), tile.places, p_.head_dim, rows_, pitch_);
    multiply(tile, rows_ahead(head, q0, q1, index));
    if (pass_.inputs.rpb != nullptr) add_bias(head, tile);
    if (tile.is_ragged) mask(tile);

    const ScoreRow row{scores_, 1, 0, tile.slots};
    const TileVec max = max_of(row);
    if (query_t_ != nullptr) {
      transpose_in(queries_, pitch_, round_up(p_.head_dim, 4), static_cast<float>(p_.scale) * kLog2E, query_t_, kLanes);
    }
    normalize(head, query_t_, max, exp2_row(row, max));
    load_rows(key_rows(pass_.inputs.value, head, q0, q1, tile.place), tile.places, p_.value_dim, rows_, value_pitch_);
    add_values(tile);
    store(head, q0, q1, tile.query, tile.count, sums_, is_streamed_);
  }

  /// Keys or values from place k2 on.
  TensorRows key_rows(const Tensor& tensor, std::int64_t head, std::int64_t q0, std::int64_t q1,
                      std::int64_t k2) const {
    return region_.key_rows(tensor, head / heads_, region_.group[0]->queries[q0].keys.start,
                            region_.group[1]->queries[q1].keys.start, k2);
  }

  /// What the next tile will read that this one does not, of the same head. Nothing when all is in a cache anyway.
  RowsAhead rows_ahead(std::int64_t head, std::int64_t q0, std::int64_t q1, std::size_t index) const {
    RowsAhead ahead{};
    const DirectTile& tile = tiles_[index];
    const std::int64_t place = std::min(tile.place + tile.places, region_.part[2].keys.end - kLanes);
    if (!is_far_ || index + 1 == tiles_.size() || tiles_[index + 1].count < kLanes || place < 0) return ahead;
    ahead.add(region_.query_rows(pass_.inputs.query, head, q0, q1, tiles_[index + 1].query), p_.head_dim);
    ahead.add(key_rows(pass_.inputs.key, head, q0, q1, place), p_.head_dim);
    ahead.add(key_rows(pass_.inputs.value, head, q0, q1, place), p_.value_dim);
    return ahead;
  }

  /// Base-2 logits of a tile, [slot][lane].
  void multiply(const DirectTile& tile, const RowsAhead& ahead) {
    const TileTag d;
    for_each_vectors<kMostDirectVecs>(pitch_, [&]<int kVecs>(std::integral_constant<int, kVecs>, std::int64_t channel) {
      if (channel == 0) {
        multiply_channels<kVecs, false>(tile, queries_, rows_, pitch_, ahead, partial_);
      } else {
        multiply_channels<kVecs, true>(tile, queries_ + channel, rows_ + channel, pitch_, {}, partial_);
      }
    });
    const auto scale = hn::Set(d, static_cast<float>(p_.scale) * kLog2E);
    for (std::int64_t s = 0; s < tile.slots; ++s) {
      hn::Store(hn::Mul(scale, sums_of_lanes(partial_ + s * kLanes * kLanes)), d, scores_ + s * kLanes);
    }
  }

  /// sums_ = factors * probabilities * values
  void add_values(const DirectTile& tile) {
    for_each_vectors<kMostDirectVecs>(value_pitch_,
                                      [&]<int kVecs>(std::integral_constant<int, kVecs>, std::int64_t channel) {
                                        constexpr int kCount = direct_queries(kVecs);
                                        // The tile's last lanes repeat a query.
                                        for (int q = 0; q < tile.count; q += kCount) {
                                          add_direct_values<kVecs, kCount>(tile, q, rows_ + channel, scores_,
                                                                           end_.factors, sums_ + channel, value_pitch_);
                                        }
                                      });
  }

  void add_bias(std::int64_t head, const DirectTile& tile) const {
    const TileTag d;
    const hn::Rebind<std::int32_t, TileTag> di;
    // The outer axes have kernel size 1, and so one entry.
    const std::int64_t entries = 2 * axes_[2].kernel_size - 1;
    const float* bias = pass_.inputs.rpb + head * entries;
    const auto log2e = hn::Set(d, kLog2E);
    const auto last = hn::Set(di, static_cast<std::int32_t>(entries - 1));
    for (std::int64_t s = 0; s < tile.slots; ++s) {
      // Slots that a lane does not have may lie behind the table.
      const auto entry = hn::Min(hn::Add(hn::LoadU(di, tile.bias), hn::Set(di, static_cast<std::int32_t>(s))), last);
      float* scores = scores_ + s * kLanes;
      hn::Store(hn::MulAdd(hn::GatherIndex(d, bias, entry), log2e, hn::Load(d, scores)), d, scores);
    }
  }

  void mask(const DirectTile& tile) const {
    const TileTag d;
    const hn::Rebind<std::int32_t, TileTag> di;
    alignas(64) std::int32_t counts[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) counts[lane] = static_cast<std::int32_t>(tile.keys[lane]);
    const auto keys = hn::Load(di, counts);
    const auto lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
    for (std::int64_t s = 0; s < tile.slots; ++s) {
      const auto has_key = hn::RebindMask(d, hn::Gt(keys, hn::Set(di, static_cast<std::int32_t>(s))));
      hn::Store(hn::IfThenElse(has_key, hn::Load(d, scores_ + s * kLanes), lowest), d, scores_ + s * kLanes);
    }
  }

  const bool is_far_;  ///< inputs are too large to be in a cache

  std::vector<DirectTile> tiles_;
  float* rows_;  ///< keys, then values of a tile
  float *queries_, *sums_, *partial_, *scores_;
  float* query_t_ = nullptr;  ///< transposed, where there are extra tokens
};

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_FORWARD_DIRECT_INL_H_
