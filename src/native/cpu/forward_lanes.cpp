// The "query lanes" forward kernel, for long windows along one axis. Lanes are consecutive queries; a key serves all of
// them as one broadcast, unpacked. The windows of a tile together are a little longer than one: the waste of this
// design.
#include <algorithm>
#include <limits>
#include <vector>

#include "native/cpu/forward_plan.h"
#include "native/cpu/scratch.h"
#include "native/cpu/tensor.h"
#include "native/cpu/tuning.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "native/cpu/forward_lanes.cpp"
#include "hwy/foreach_target.h"
// Highway asks that these come after foreach_target.h.
#include "hwy/highway.h"
#include "native/cpu/dispatch.h"
#include "native/cpu/tile_products-inl.h"
#include "native/cpu/tile_rows-inl.h"
#include "native/cpu/tile_softmax-inl.h"
#include "native/cpu/tile_values-inl.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace {

using forward::Pass;

constexpr int kMostTiles = 2;

/// Keys at a time of one or two tiles: multiples of 4 whose sums fit the registers.
constexpr int most_keys(int tiles) {
  return std::max(kAccumulators / tiles / 4 * 4, 4);
}

struct LanesCall {
  const float* keys;  ///< [key][pitch]
  std::int64_t pitch, channels;
  const float* queries[kMostTiles];  ///< transposed [channel][lane]
  float* scores[kMostTiles];         ///< [key][lane]
};

/// scores[tile][key] = query . key
template <int kTiles, int kKeys>
void multiply_lanes(const LanesCall& call) {
  const TileTag d;
  TileVec sums[kTiles][kKeys];
  NATTEN_UNROLL
  for (int t = 0; t < kTiles; ++t) {
    NATTEN_UNROLL
    for (int k = 0; k < kKeys; ++k) sums[t][k] = hn::Zero(d);
  }
  const std::int64_t pitch = call.pitch;
  const float* keys = call.keys;
  const float* queries[kTiles];
  NATTEN_UNROLL
  for (int t = 0; t < kTiles; ++t) queries[t] = call.queries[t];
  for (std::int64_t c = 0; c < call.channels; ++c, ++keys) {
    TileVec query[kTiles];
    NATTEN_UNROLL
    for (int t = 0; t < kTiles; ++t) {
      query[t] = hn::Load(d, queries[t] + c * kLanes);
      keep_in_register(query[t]);
    }
    NATTEN_UNROLL
    for (int k = 0; k < kKeys; ++k) {
      TileVec key = hn::Set(d, keys[k * pitch]);
      if constexpr (kTiles > 1) keep_in_register(key);
      NATTEN_UNROLL
      for (int t = 0; t < kTiles; ++t) sums[t][k] = hn::MulAdd(query[t], key, sums[t][k]);
    }
  }
  NATTEN_UNROLL
  for (int t = 0; t < kTiles; ++t) {
    float* scores = call.scores[t];
    NATTEN_UNROLL
    for (int k = 0; k < kKeys; ++k) hn::Store(sums[t][k], d, scores + k * kLanes);
  }
}

/// `count` keys, rounded up to a multiple of 4.
template <int kTiles, int kKeys = most_keys(kTiles)>
void multiply_all(LanesCall call, std::int64_t count) {
  const auto advance = [&] {
    call.keys += kKeys * call.pitch;
    for (int t = 0; t < kTiles; ++t) call.scores[t] += kKeys * kLanes;
  };
  if constexpr (kKeys > 4) {
    for (; count >= kKeys; count -= kKeys, advance()) multiply_lanes<kTiles, kKeys>(call);
    if (count > 0) multiply_all<kTiles, kKeys - 4>(call, count);
  } else {
    for (; count > 0; count -= kKeys, advance()) multiply_lanes<kTiles, 4>(call);
  }
}

class LanesSweep {
 public:
  LanesSweep(const Pass& pass, const Task& task)
      : pass_(pass),
        p_(pass.inputs.problem),
        task_(task),
        axes_(task.plan->sample.axes),
        group_{&task.plan->group(0, task.group[0]), &task.plan->group(1, task.group[1]),
               &task.plan->group(2, task.group[2])},
        heads_(p_.heads / p_.kv_heads),
        pitch_((p_.head_dim + kLanes - 1) / kLanes * kLanes),
        value_pitch_((p_.value_dim + kLanes - 1) / kLanes * kLanes),
        tiles_(axes_[2].kernel_size >= tuning::kQueryLanesTwoTiles ? 2 : 1) {
    for (int a = 0; a < kAxes; ++a) part_[a] = make_part(*group_[a], task.owned[a], {true, false}, true);
  }

  void run() {
    for (const AxisPart& part : part_) {
      if (size_of(part.queries) <= 0) return;
    }
    const auto& queries = group_[2]->queries;
    const Span& owned = part_[2].queries;
    const std::int64_t together = tiles_ * kLanes;
    std::int64_t most_keys = 0;
    for (std::int64_t q = owned.start; q < owned.end; q += together) {
      const std::int64_t last = std::min(q + together, owned.end) - 1;
      most_keys = std::max(most_keys, queries[last].keys.end - queries[q].keys.start);
    }
    score_size_ = (most_keys + 3) * kLanes;
    const std::int64_t keys = size_of(part_[2].keys), channels = (p_.head_dim + 3) / 4 * 4;
    Scratch scratch(Scratch::bytes<float>((keys + 3) * pitch_) + Scratch::bytes<float>(keys * value_pitch_) +
                    Scratch::bytes<float>(tiles_ * channels * kLanes) + Scratch::bytes<float>(tiles_ * score_size_) +
                    Scratch::bytes<float>(kLanes * std::max(pitch_, value_pitch_)) + 2 * Scratch::bytes<float>(kLanes));
    keys_ = scratch.take<float>((keys + 3) * pitch_);
    values_ = scratch.take<float>(keys * value_pitch_);
    queries_ = scratch.take<float>(tiles_ * channels * kLanes);
    scores_ = scratch.take<float>(tiles_ * score_size_);
    buffer_ = scratch.take<float>(kLanes * std::max(pitch_, value_pitch_));
    factors_ = scratch.take<float>(kLanes);
    lse_ = scratch.take<float>(kLanes);

    for (std::int64_t q0 = part_[0].queries.start; q0 < part_[0].queries.end; ++q0) {
      for (std::int64_t q1 = part_[1].queries.start; q1 < part_[1].queries.end; ++q1) {
        for (std::int64_t kv_head = task_.kv_heads.start; kv_head < task_.kv_heads.end; ++kv_head) {
          pack_keys_and_values(kv_head, q0, q1);
          for (std::int64_t head = kv_head * heads_; head < (kv_head + 1) * heads_; ++head) {
            for (std::int64_t q = owned.start; q < owned.end; q += together) {
              run_tiles(head, q0, q1, {q, std::min(q + together, owned.end)});
            }
          }
        }
      }
    }
  }

 private:
  void pack_keys_and_values(std::int64_t kv_head, std::int64_t q0, std::int64_t q1) {
    const Span& k2s = part_[2].keys;
    const Place at{group_[0]->token(group_[0]->queries[q0].keys.start),
                   group_[1]->token(group_[1]->queries[q1].keys.start), group_[2]->token(k2s.start)};
    const auto rows = [&](const Tensor& tensor) {
      return TensorRows{row_of(tensor, task_.plan->batch, at, kv_head), tensor.strides[3] * group_[2]->token_step,
                        tensor.type};
    };
    load_rows(rows(pass_.inputs.key), size_of(k2s), p_.head_dim, keys_, pitch_);
    load_rows(rows(pass_.inputs.value), size_of(k2s), p_.value_dim, values_, value_pitch_);
  }

  Place place_of(std::int64_t q0, std::int64_t q1, std::int64_t q2) const {
    return {group_[0]->queries[q0].output, group_[1]->queries[q1].output, group_[2]->queries[q2].output};
  }
  std::int64_t query_step() const {
    const auto& queries = group_[2]->queries;
    return queries.size() > 1 ? queries[1].output - queries[0].output : 1;
  }

  /// All queries of the span, at most kLanes per tile.
  void run_tiles(std::int64_t head, std::int64_t q0, std::int64_t q1, const Span& span) {
    const auto& queries = group_[2]->queries;
    const std::int64_t channels = (p_.head_dim + 3) / 4 * 4;
    const std::int64_t first_key = queries[span.start].keys.start;
    LanesCall call{keys_ + (first_key - part_[2].keys.start) * pitch_, pitch_, p_.head_dim, {}, {}};
    int tiles = 0;
    for (std::int64_t q = span.start; q < span.end; q += kLanes, ++tiles) {
      const Place output = place_of(q0, q1, q);
      const Place token{output[0] * axes_[0].stride, output[1] * axes_[1].stride, output[2] * axes_[2].stride};
      const Tensor& query = pass_.inputs.query;
      load_rows({row_of(query, task_.plan->batch, token, head), query.strides[3] * axes_[2].stride * query_step(),
                 query.type},
                std::min<std::int64_t>(kLanes, span.end - q), p_.head_dim, buffer_, pitch_);
      float* packed = queries_ + tiles * channels * kLanes;
      transpose_in(buffer_, pitch_, channels, static_cast<float>(p_.scale) * kLog2E, packed, kLanes);
      call.queries[tiles] = packed;
      call.scores[tiles] = scores_ + tiles * score_size_;
    }
    const std::int64_t keys = queries[span.end - 1].keys.end - first_key;
    tiles == 2 ? multiply_all<2>(call, keys) : multiply_all<1>(call, keys);
    for (int t = 0; t < tiles; ++t) {
      const std::int64_t q = span.start + t * kLanes;
      finish_tile(head, q0, q1, {q, std::min(q + kLanes, span.end)}, first_key, call.scores[t]);
    }
  }

  /// Softmax and values of one tile, whose scores start at `first_key`.
  void finish_tile(std::int64_t head, std::int64_t q0, std::int64_t q1, const Span& span, std::int64_t first_key,
                   float* scores) {
    const TileTag d;
    const auto& queries = group_[2]->queries;
    const int count = static_cast<int>(size_of(span));
    std::int64_t begin[kLanes] = {}, end[kLanes] = {};
    for (int lane = 0; lane < count; ++lane) {
      begin[lane] = queries[span.start + lane].keys.start - first_key;
      end[lane] = queries[span.start + lane].keys.end - first_key;
    }
    if (pass_.inputs.rpb != nullptr) add_bias(head, q0, q1, span, first_key, scores);
    mask(begin, end, count, scores);

    const ScoreRow row{scores + begin[0] * kLanes, 1, 0, end[count - 1] - begin[0]};
    const TileVec max = max_of(row);
    const TileVec sum = exp2_row(row, max);
    const Normalizer normalizer(max, sum);
    hn::Store(normalizer.factor, d, factors_);
    hn::Store(normalizer.lse, d, lse_);

    ValueRows call{};
    call.place_values = value_pitch_;
    call.pitch = value_pitch_;
    const float* values = values_;
    call.row_values = &values;
    call.value = (first_key - part_[2].keys.start) * value_pitch_;
    for (int q = 0; q < count; q += kQueries) {
      call.probabilities = scores + q;
      call.factor = factors_ + q;
      call.sums = buffer_ + q * value_pitch_;
      for_each_value_part(value_pitch_, [&]<int kVectors>(std::integral_constant<int, kVectors>, std::int64_t channel) {
        ValueRows part = call;
        part.value += channel;
        part.sums += channel;
        add_values_of_row<kVectors>(part, std::min(kQueries, count - q), begin + q, end + q);
      });
    }
    if (normalizer.has_empty) clear_empty_rows(lse_, count, buffer_, value_pitch_);
    const Place output = place_of(q0, q1, span.start);
    store_rows(
        buffer_, value_pitch_, count, p_.value_dim,
        {row_of(pass_.out, task_.plan->batch, output, head), pass_.out.strides[3] * query_step(), pass_.out.type});
    float* lse = pass_.lse + output_grid(p_).index(task_.plan->batch, output) * p_.heads + head;
    for (int lane = 0; lane < count; ++lane) lse[lane * query_step() * p_.heads] = lse_[lane];
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

  void add_bias(std::int64_t head, std::int64_t q0, std::int64_t q1, const Span& span, std::int64_t first_key,
                float* scores) const {
    const std::int64_t bias1 = 2 * axes_[1].kernel_size - 1, bias2 = 2 * axes_[2].kernel_size - 1;
    const auto &outer = group_[0]->queries[q0], &inner = group_[1]->queries[q1];
    const std::int64_t rows =
        head * (2 * axes_[0].kernel_size - 1) + rpb_index(axes_[0], outer.place, outer.keys.start);
    const float* bias = pass_.inputs.rpb + (rows * bias1 + rpb_index(axes_[1], inner.place, inner.keys.start)) * bias2;
    for (std::int64_t q = span.start; q < span.end; ++q) {
      const AxisGroup::Query& query = group_[2]->queries[q];
      float* score = scores + (query.keys.start - first_key) * kLanes + (q - span.start);
      const float* entry = bias + rpb_index(axes_[2], query.place, query.keys.start);
      for (std::int64_t k = 0; k < size_of(query.keys); ++k) score[k * kLanes] += kLog2E * entry[k];
    }
  }

  const Pass& pass_;
  const Problem& p_;
  const Task& task_;
  const std::array<Axis, kAxes>& axes_;
  const AxisGroup* group_[kAxes];
  const std::int64_t heads_;  ///< query heads of the key head
  const std::int64_t pitch_, value_pitch_;
  const int tiles_;  ///< at a time

  AxisPart part_[kAxes];
  std::int64_t score_size_;  ///< floats of the scores of a tile
  float *keys_, *values_, *queries_, *scores_, *buffer_, *factors_, *lse_;
};

void run_lanes_task_of_target(const Pass& pass, const Task& task) {
  LanesSweep(pass, task).run();
}

}  // namespace
}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace natten::cpu::forward {

HWY_EXPORT(run_lanes_task_of_target);

void run_lanes_task(const Pass& pass, const Task& task) {
  NATTEN_DISPATCH(run_lanes_task_of_target)(pass, task);
}

}  // namespace natten::cpu::forward
#endif  // HWY_ONCE
