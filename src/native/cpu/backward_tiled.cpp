#include <algorithm>
#include <cstring>
#include <utility>

#include "native/cpu/backward.h"
#include "native/cpu/scratch.h"
#include "native/cpu/tensor.h"
#include "native/cpu/tuning.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "native/cpu/backward_tiled.cpp"
#include "hwy/foreach_target.h"
// Highway asks that these come after foreach_target.h.
#include "hwy/highway.h"
#include "native/cpu/backward_tiles-inl.h"
#include "native/cpu/dispatch.h"
#include "native/cpu/simd_convert-inl.h"
#include "native/cpu/simd_exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace {

using backward::AxisGroup;
using backward::AxisPart;
using backward::contains;
using backward::Pass;
using backward::size_of;
using backward::Span;
using backward::Task;
using backward::Tile;

constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// Copies `count` rows of `dim` elements as float32; the rest of each row of `pitch`, and of `lanes` rows, is zero.
template <class T>
void load_rows(const void* from_bytes, std::int64_t stride, std::int64_t count, std::int64_t dim, float* to,
               std::int64_t pitch, std::int64_t lanes) {
  const TileTag d;
  const T* from = static_cast<const T*>(from_bytes);
  for (std::int64_t r = 0; r < count; ++r, from += stride, to += pitch) {
    std::int64_t c = 0;
    for (; c + kLanes <= dim; c += kLanes) hn::Store(load_float(d, from + c), d, to + c);
    if (c < dim) hn::Store(load_float_n(d, from + c, dim - c), d, to + c);
  }
  if (count < lanes) std::memset(to, 0, (lanes - count) * pitch * sizeof(float));
}

template <class T>
void store_rows(const float* from, std::int64_t pitch, std::int64_t count, std::int64_t dim, float factor,
                void* to_bytes, std::int64_t stride) {
  const TileTag d;
  const auto scale = hn::Set(d, factor);
  T* to = static_cast<T*>(to_bytes);
  for (std::int64_t r = 0; r < count; ++r, from += pitch, to += stride) {
    std::int64_t c = 0;
    for (; c + kLanes <= dim; c += kLanes) store_float(d, hn::Mul(scale, hn::Load(d, from + c)), to + c);
    if (c < dim) store_float_n(d, hn::Mul(scale, hn::Load(d, from + c)), to + c, dim - c);
  }
}

/// Places of one row of tokens (or queries) of a tensor.
struct TensorRow {
  char* data;
  std::int64_t stride;  ///< elements from one place to the next
  FloatType type;
};

void load_rows(const TensorRow& from, std::int64_t count, std::int64_t dim, float* to, std::int64_t pitch,
               std::int64_t lanes) {
  with_storage_type(from.type, [&](auto storage) {
    load_rows<decltype(storage)>(from.data, from.stride, count, dim, to, pitch, lanes);
  });
}

void store_rows(const float* from, std::int64_t pitch, std::int64_t count, std::int64_t dim, float factor,
                const TensorRow& to) {
  with_storage_type(to.type, [&](auto storage) {
    store_rows<decltype(storage)>(from, pitch, count, dim, factor, to.data, to.stride);
  });
}

/// Where the arrays of a packed tile of queries are, in floats from its start.
struct TileLayout {
  std::int64_t query_t, dout_t, dquery_t;  ///< transposed [channel][lane]; query is scaled
  std::int64_t query, dout;                ///< [lane][channel pitch]
  std::int64_t lse, delta;                 ///< [lane]
  std::int64_t size;
};

/// One packed row of queries that attends the current row of keys.
struct QueryRow {
  float* tiles;
  bool owned;
  const float* bias;  ///< its row of the position bias for this row of keys, or null
  float* drpb;        ///< the same of the gradient, or null
};

class Sweep {
 public:
  Sweep(const Pass& pass, const Task& task)
      : pass_(pass),
        problem_(pass.inputs.problem),
        task_(task),
        axes_(task.plan->sample.axes),
        group_{&task.plan->groups[0][task.group[0]], &task.plan->groups[1][task.group[1]],
               &task.plan->groups[2][task.group[2]]},
        outputs_(output_grid(problem_)),
        heads_(problem_.heads / problem_.kv_heads),
        dim_(problem_.head_dim),
        value_dim_(problem_.value_dim),
        pitch_(round_up(dim_, kLanes)),
        value_pitch_(round_up(value_dim_, kLanes)) {
    for (int a = 0; a < kAxes; ++a) part_[a] = make_part(*group_[a], task.owned[a], pass.wanted, a == 2);
    tiles_ = make_tiles(axes_[2], *group_[2], part_[2].queries, kLanes);
    first_place_ = part_[2].keys.start;
    if (!tiles_.empty()) first_place_ = std::min(first_place_, tiles_.front().slot0);
    places_ = part_[2].keys.end - first_place_;
  }

  void run() {
    if (places_ <= 0) return;
    plan_memory();
    Scratch scratch(scratch_bytes());
    take_memory(scratch);
    for (std::int64_t k0 = part_[0].keys.start; k0 < part_[0].keys.end; ++k0) {
      for (std::int64_t k1 = part_[1].keys.start; k1 < part_[1].keys.end; k1 += block_rows_) {
        sweep_block(k0, {k1, std::min(k1 + block_rows_, part_[1].keys.end)});
      }
    }
  }

 private:
  /// Queries of axis `a` that attend any of the keys, as far as this task needs them.
  Span attending(int a, const Span& keys) const {
    Span span{part_[a].queries.end, part_[a].queries.start};
    for (std::int64_t key = keys.start; key < keys.end; ++key) {
      const Span& queries = group_[a]->attending[key];
      if (size_of(queries) == 0) continue;
      span.start = std::min(span.start, std::max(queries.start, part_[a].queries.start));
      span.end = std::max(span.end, std::min(queries.end, part_[a].queries.end));
    }
    return span.start < span.end ? span : Span{0, 0};
  }

  void plan_memory() {
    const std::int64_t channels = round_up(dim_, 4), value_channels = round_up(value_dim_, 4);
    std::int64_t next = 0;
    const auto place = [&](std::int64_t floats) { return std::exchange(next, next + round_up(floats, kLanes)); };
    layout_.query_t = place(channels * kLanes);
    layout_.dout_t = place(value_channels * kLanes);
    layout_.dquery_t = place(channels * kLanes);
    layout_.query = place(pitch_ * kLanes);
    layout_.dout = place(value_pitch_ * kLanes);
    layout_.lse = place(kLanes);
    layout_.delta = place(kLanes);
    layout_.size = next;
    row_size_ = layout_.size * static_cast<std::int64_t>(tiles_.size());

    // Loads of a tile reach kLanes - 1 places past its last key. An odd number of cache lines spreads the channels
    // over the sets of the cache.
    const std::int64_t line = 16;
    row_pitch_ = (round_up(places_ + kLanes, line) / line | 1) * line;
    key_row_size_ = row_pitch_ * (round_up(dim_, 4) + round_up(value_dim_, 4));
    dkey_row_size_ = pass_.wanted.key_value ? places_ * (pitch_ + value_pitch_) : 0;
    const std::int64_t key_bytes = 4 * (key_row_size_ + dkey_row_size_);
    block_rows_ = std::clamp<std::int64_t>(tuning::kKeyBlockBytes / key_bytes, 1, tuning::kKeyBlockRows);
    block_rows_ = std::min(block_rows_, std::max<std::int64_t>(size_of(part_[1].keys), 1));

    // Rows of queries in use at a time: a ring along the outermost axis that has several.
    ring_[0] = ring_[1] = 1;
    for (std::int64_t k = part_[0].keys.start; k < part_[0].keys.end; ++k) {
      ring_[0] = std::max(ring_[0], size_of(attending(0, {k, k + 1})));
    }
    if (size_of(part_[0].keys) > 1) {
      ring_[1] = std::max<std::int64_t>(size_of(part_[1].queries), 1);
    } else {
      for (std::int64_t k = part_[1].keys.start; k < part_[1].keys.end; k += block_rows_) {
        ring_[1] = std::max(ring_[1], size_of(attending(1, {k, std::min(k + block_rows_, part_[1].keys.end)})));
      }
    }
    slot_rows_ = std::min<std::int64_t>(axes_[2].kernel_size, tuning::kSlotBlock);
    score_size_ = slot_rows_ * kLanes;
    const std::int64_t most_rows = ring_[0] * ring_[1] * heads_;
    score_rows_ = std::clamp<std::int64_t>(tuning::kScoreBytes / (4 * score_size_), 1, most_rows);
  }

  std::int64_t scratch_bytes() const {
    const std::int64_t rows = ring_[0] * ring_[1] * heads_;
    return Scratch::bytes<float>(rows * row_size_) + Scratch::bytes<std::int64_t>(2 * ring_[0] * ring_[1]) +
           Scratch::bytes<float>(block_rows_ * key_row_size_) + Scratch::bytes<float>(block_rows_ * dkey_row_size_) +
           2 * Scratch::bytes<float>(score_rows_ * score_size_) +
           Scratch::bytes<float>(kLanes * std::max(pitch_, value_pitch_)) + 3 * Scratch::bytes<float*>(score_rows_);
  }

  void take_memory(Scratch& scratch) {
    const std::int64_t slots = ring_[0] * ring_[1];
    ring_memory_ = scratch.take<float>(slots * heads_ * row_size_);
    ring_tags_ = scratch.take<std::int64_t>(2 * slots);
    std::fill_n(ring_tags_, 2 * slots, std::int64_t{-1});
    key_memory_ = scratch.take<float>(block_rows_ * key_row_size_);
    dkey_memory_ = scratch.take<float>(block_rows_ * dkey_row_size_);
    probabilities_ = scratch.take<float>(score_rows_ * score_size_);
    dlogits_ = scratch.take<float>(score_rows_ * score_size_);
    rows_buffer_ = scratch.take<float>(kLanes * std::max(pitch_, value_pitch_));
    for (auto& pointers : pointers_) pointers = scratch.take<float*>(score_rows_);
    // Places outside the axis read as zero.
    std::memset(key_memory_, 0, block_rows_ * key_row_size_ * sizeof(float));
  }

  float* ring_row(std::int64_t q0, std::int64_t q1, std::int64_t head) const {
    return ring_memory_ + (((q0 % ring_[0]) * ring_[1] + q1 % ring_[1]) * heads_ + head) * row_size_;
  }

  std::int64_t* ring_tag(std::int64_t q0, std::int64_t q1) const {
    return ring_tags_ + 2 * ((q0 % ring_[0]) * ring_[1] + q1 % ring_[1]);
  }
  bool is_packed(std::int64_t q0, std::int64_t q1) const {
    return ring_tag(q0, q1)[0] == q0 && ring_tag(q0, q1)[1] == q1;
  }

  bool is_owned_query(std::int64_t q0, std::int64_t q1) const {
    return contains(part_[0].owned_queries, q0) && contains(part_[1].owned_queries, q1);
  }
  bool is_owned_key(std::int64_t k0, std::int64_t k1) const {
    return contains(part_[0].owned_keys, k0) && contains(part_[1].owned_keys, k1);
  }

  TensorRow token_row(const Tensor& tensor, std::int64_t k0, std::int64_t k1, std::int64_t k2) const {
    const Place at{group_[0]->token(k0), group_[1]->token(k1), group_[2]->token(k2)};
    return {row_of(tensor, task_.plan->batch, at, task_.kv_head), tensor.strides[3] * group_[2]->token_step,
            tensor.type};
  }

  /// A row of queries from query `q2` on: of a tensor over tokens, or over output positions.
  TensorRow query_row(const Tensor& tensor, bool over_tokens, std::int64_t q0, std::int64_t q1, std::int64_t q2,
                      std::int64_t head) const {
    const auto& queries = group_[2]->queries;
    const std::int64_t index[] = {q0, q1, q2};
    Place at;
    for (int a = 0; a < kAxes; ++a) {
      at[a] = group_[a]->queries[index[a]].output * (over_tokens ? axes_[a].stride : 1);
    }
    const std::int64_t step = queries.size() > 1 ? queries[1].output - queries[0].output : 1;
    return {row_of(tensor, task_.plan->batch, at, task_.kv_head * heads_ + head),
            tensor.strides[3] * step * (over_tokens ? axes_[2].stride : 1), tensor.type};
  }

  void pack_query_tile(std::int64_t q0, std::int64_t q1, std::int64_t head, const Tile& tile, float* to) const {
    const SavedForward& saved = pass_.saved;
    load_rows(query_row(pass_.inputs.query, true, q0, q1, tile.query, head), tile.count, dim_, to + layout_.query,
              pitch_, kLanes);
    load_rows(query_row(saved.dout, false, q0, q1, tile.query, head), tile.count, value_dim_, to + layout_.dout,
              value_pitch_, kLanes);
    transpose_in(to + layout_.query, pitch_, round_up(dim_, 4), static_cast<float>(problem_.scale),
                 to + layout_.query_t, kLanes);
    transpose_in(to + layout_.dout, value_pitch_, round_up(value_dim_, 4), 1.0f, to + layout_.dout_t, kLanes);
    std::memset(to + layout_.dquery_t, 0, kLanes * round_up(dim_, 4) * sizeof(float));
    std::fill_n(to + layout_.lse, kLanes, 0.0f);
    std::fill_n(to + layout_.delta, kLanes, 0.0f);

    const TileTag d;
    load_rows(query_row(saved.out, false, q0, q1, tile.query, head), tile.count, value_dim_, rows_buffer_, value_pitch_,
              tile.count);
    const auto& queries = group_[2]->queries;
    const std::int64_t row = task_.plan->batch * outputs_.per_sample() +
                             outputs_.index(0, {group_[0]->queries[q0].output, group_[1]->queries[q1].output, 0});
    for (int lane = 0; lane < tile.count; ++lane) {
      const float* out = rows_buffer_ + lane * value_pitch_;
      const float* dout = to + layout_.dout + lane * value_pitch_;
      auto sum = hn::Zero(d);
      for (std::int64_t c = 0; c < value_pitch_; c += kLanes) {
        sum = hn::MulAdd(hn::Load(d, out + c), hn::Load(d, dout + c), sum);
      }
      const std::int64_t flat =
          (row + queries[tile.query + lane].output) * problem_.heads + task_.kv_head * heads_ + head;
      to[layout_.lse + lane] = saved.lse[flat];
      to[layout_.delta + lane] =
          hn::GetLane(hn::SumOfLanes(d, sum)) - (saved.dlse == nullptr ? 0.0f : saved.dlse[flat]);
    }
  }

  void pack_queries(std::int64_t q0, std::int64_t q1) const {
    if (is_packed(q0, q1)) return;
    std::int64_t* tag = ring_tag(q0, q1);
    tag[0] = q0;
    tag[1] = q1;
    for (std::int64_t head = 0; head < heads_; ++head) {
      float* to = ring_row(q0, q1, head);
      for (const Tile& tile : tiles_) {
        pack_query_tile(q0, q1, head, tile, to);
        to += layout_.size;
      }
    }
  }

  void pack_keys(const Tensor& tensor, std::int64_t k0, std::int64_t k1, std::int64_t dim, std::int64_t pitch,
                 float* to) const {
    for (std::int64_t place = part_[2].keys.start; place < part_[2].keys.end;) {
      // Aligned stores: the first vector may be a partial one.
      const std::int64_t x = place - first_place_;
      const std::int64_t lane = x % kLanes;
      const std::int64_t count = std::min(kLanes - lane, part_[2].keys.end - place);
      const TensorRow row = token_row(tensor, k0, k1, place);
      if (lane == 0 && count == kLanes && row.type == FloatType::float32 && dim % 4 == 0) {
        transpose_in(reinterpret_cast<const float*>(row.data), row.stride, dim, 1.0f, to + x, row_pitch_);
      } else {
        std::memset(rows_buffer_, 0, lane * pitch * sizeof(float));
        load_rows(row, count, dim, rows_buffer_ + lane * pitch, pitch, kLanes - lane);
        transpose_in(rows_buffer_, pitch, round_up(dim, 4), 1.0f, to + x - lane, row_pitch_);
      }
      place += count;
    }
  }

  /// Rows of queries of this task that attend a row of keys and have something to do with it, owned ones first.
  void list_rows(std::int64_t k0, std::int64_t k1, std::vector<QueryRow>& rows) const {
    rows.clear();
    const bool owned_key = is_owned_key(k0, k1);
    const Span q0s = attending(0, {k0, k0 + 1}), q1s = attending(1, {k1, k1 + 1});
    const std::int64_t bias1 = 2 * axes_[1].kernel_size - 1, bias2 = 2 * axes_[2].kernel_size - 1;
    const std::int64_t table = (2 * axes_[0].kernel_size - 1) * bias1 * bias2;
    for (const bool owned : {true, false}) {
      if (!owned && !owned_key) break;
      for (std::int64_t q0 = q0s.start; q0 < q0s.end; ++q0) {
        for (std::int64_t q1 = q1s.start; q1 < q1s.end; ++q1) {
          if (is_owned_query(q0, q1) != owned) continue;
          const std::int64_t entry = (rpb_index(axes_[0], group_[0]->queries[q0].place, k0) * bias1 +
                                      rpb_index(axes_[1], group_[1]->queries[q1].place, k1)) *
                                     bias2;
          for (std::int64_t head = 0; head < heads_; ++head) {
            const float* rpb = pass_.inputs.rpb;
            rows.push_back({ring_row(q0, q1, head), owned,
                            rpb == nullptr ? nullptr : rpb + (task_.kv_head * heads_ + head) * table + entry,
                            task_.drpb == nullptr ? nullptr : task_.drpb + head * table + entry});
          }
        }
      }
    }
  }

  /// Some rows of keys, which stay packed while all tiles of queries pass by.
  void sweep_block(std::int64_t k0, const Span& k1s) {
    const Span q0s = attending(0, {k0, k0 + 1}), q1s = attending(1, k1s);
    const bool owned_keys = any_owned_key(k0, k1s);
    for (std::int64_t k1 = k1s.start; k1 < k1s.end; ++k1) {
      float* keys = key_memory_ + (k1 - k1s.start) * key_row_size_;
      pack_keys(pass_.inputs.key, k0, k1, dim_, pitch_, keys);
      pack_keys(pass_.inputs.value, k0, k1, value_dim_, value_pitch_, keys + row_pitch_ * round_up(dim_, 4));
    }
    for_each_needed(q0s, q1s, owned_keys, [&](std::int64_t q0, std::int64_t q1) { pack_queries(q0, q1); });
    if (owned_keys) std::memset(dkey_memory_, 0, block_rows_ * dkey_row_size_ * sizeof(float));
    rows_.resize(size_of(k1s));
    for (std::int64_t k1 = k1s.start; k1 < k1s.end; ++k1) list_rows(k0, k1, rows_[k1 - k1s.start]);

    for (std::size_t t = 0; t < tiles_.size(); ++t) {
      for (std::int64_t k1 = k1s.start; k1 < k1s.end; ++k1) {
        multiply(tiles_[t], t * layout_.size, k1 - k1s.start, is_owned_key(k0, k1));
      }
    }
    for (std::int64_t k1 = k1s.start; k1 < k1s.end; ++k1) {
      if (is_owned_key(k0, k1)) store_keys(k0, k1, dkey_memory_ + (k1 - k1s.start) * dkey_row_size_);
    }
    for_each_finished(k0, k1s,
                      [&](std::int64_t q0, std::int64_t q1, std::int64_t head) { store_queries(q0, q1, head); });
  }

  bool any_owned_key(std::int64_t k0, const Span& k1s) const {
    const Span& owned = part_[1].owned_keys;
    return contains(part_[0].owned_keys, k0) && std::max(k1s.start, owned.start) < std::min(k1s.end, owned.end);
  }

  template <class Visit>
  void for_each_needed(const Span& q0s, const Span& q1s, bool owned_keys, Visit&& visit) const {
    for (std::int64_t q0 = q0s.start; q0 < q0s.end; ++q0) {
      for (std::int64_t q1 = q1s.start; q1 < q1s.end; ++q1) {
        if (owned_keys || is_owned_query(q0, q1)) visit(q0, q1);
      }
    }
  }

  /// Owned rows of queries whose last row of keys is in the block.
  template <class Visit>
  void for_each_finished(std::int64_t k0, const Span& k1s, Visit&& visit) const {
    const Span q0s = attending(0, {k0, k0 + 1}), q1s = attending(1, k1s);
    for (std::int64_t q0 = q0s.start; q0 < q0s.end; ++q0) {
      if (group_[0]->queries[q0].keys.end != k0 + 1) continue;
      for (std::int64_t q1 = q1s.start; q1 < q1s.end; ++q1) {
        if (!is_owned_query(q0, q1) || !contains(k1s, group_[1]->queries[q1].keys.end - 1)) continue;
        for (std::int64_t head = 0; head < heads_; ++head) visit(q0, q1, head);
      }
    }
  }

  /// All products of one tile of queries, of all rows that attend it, with a row of keys of the block.
  void multiply(const Tile& tile, std::int64_t tile_start, std::int64_t block_row, bool owned_key) {
    const std::vector<QueryRow>& rows = rows_[block_row];
    const int kernel_size = static_cast<int>(axes_[2].kernel_size);
    const float* keys = key_memory_ + block_row * key_row_size_ + tile.slot0 - first_place_;
    const float* values = keys + row_pitch_ * round_up(dim_, 4);
    float* dkeys = dkey_memory_ + block_row * dkey_row_size_ + (tile.slot0 - first_place_) * pitch_;
    float* dvalues =
        dkey_memory_ + block_row * dkey_row_size_ + places_ * pitch_ + (tile.slot0 - first_place_) * value_pitch_;
    for_each_piece(kernel_size - tile.first_slot, static_cast<int>(slot_rows_), [&](int slot, int slots) {
      slot += tile.first_slot;
      for_each_piece(static_cast<int>(rows.size()), static_cast<int>(score_rows_), [&](int first_row, int count) {
        const QueryRow* row = rows.data() + first_row;
        int owned = 0;
        for (int r = 0; r < count; ++r) owned += row[r].owned;

        const auto point_to = [&](float** pointers, std::int64_t offset) {
          for (int r = 0; r < count; ++r) pointers[r] = row[r].tiles + tile_start + offset;
        };
        point_to(pointers_[0], layout_.query_t);
        point_to(pointers_[1], layout_.dout_t);
        call_tiles(kMultiply, tile, keys + slot, dim_, pointers_[0], count, slots, probabilities_);
        call_tiles(kMultiply, tile, values + slot, value_dim_, pointers_[1], count, slots, dlogits_);
        for (int r = 0; r < count; ++r) {
          finish_scores(tile, row[r], tile_start, slot, slots, probabilities_ + r * score_size_,
                        dlogits_ + r * score_size_);
        }
        if (owned > 0) {
          point_to(pointers_[2], layout_.dquery_t);
          call_tiles(kAddKeys, tile, keys + slot, dim_, pointers_[2], owned, slots, dlogits_);
        }
        if (owned_key) {
          point_to(pointers_[0], layout_.dout);
          point_to(pointers_[1], layout_.query);
          call_keys(tile, probabilities_, pointers_[0], count, slots, dvalues + slot * value_pitch_, value_pitch_);
          call_keys(tile, dlogits_, pointers_[1], count, slots, dkeys + slot * pitch_, pitch_);
        }
      });
    });
  }

  template <class Table>
  void call_tiles(const Table& table, const Tile& tile, const float* keys, std::int64_t channels, float* const* queries,
                  int rows, int slots, float* scores) {
    for_each_piece(slots, kMostSlots, [&](int slot, int slot_count) {
      for_each_piece(rows, most_rows(slot_count), [&](int row, int row_count) {
        table[slot_count - 1][row_count - 1][tile.is_shift]({keys + slot, row_pitch_, channels, tile.offset,
                                                             queries + row, scores + row * score_size_ + slot * kLanes,
                                                             score_size_});
      });
    });
  }

  void call_keys(const Tile& tile, const float* scores, const float* const* queries, int rows, int slots, float* keys,
                 std::int64_t pitch) {
    for_each_piece(slots, kMostKeys, [&](int slot, int slot_count) {
      for (std::int64_t c = 0; c < pitch; c += 2 * kLanes) {
        const int vecs = c + kLanes < pitch ? 2 : 1;
        kAddQueries[slot_count - 1][vecs - 1]({scores + slot * kLanes, score_size_, queries, c, rows,
                                               keys + slot * pitch + c, pitch, tile.offset, tile.count});
      }
    });
  }

  /// From logits and dout . v to probabilities and gradients of the logits.
  HWY_INLINE void finish_scores(const Tile& tile, const QueryRow& row, std::int64_t tile_start, int slot, int slots,
                                float* logits, float* dlogits) const {
    const TileTag d;
    const hn::Rebind<std::int32_t, TileTag> di;
    const auto lse = hn::Load(d, row.tiles + tile_start + layout_.lse);
    const auto delta = hn::Load(d, row.tiles + tile_start + layout_.delta);
    for (int s = 0; s < slots; ++s) {
      auto logit = hn::Load(d, logits + s * kLanes);
      if (row.bias != nullptr) {
        const float* bias = row.bias + slot + s;
        logit = hn::Add(
            logit, tile.one_bias ? hn::Set(d, bias[tile.bias[0]]) : hn::GatherIndex(d, bias, hn::LoadU(di, tile.bias)));
      }
      auto probability = exp_float(d, hn::Sub(logit, lse));
      auto dlogit = hn::Mul(probability, hn::Sub(hn::Load(d, dlogits + s * kLanes), delta));
      if (tile.is_masked) {
        const auto empty = hn::RebindMask(d, hn::Gt(hn::LoadU(di, tile.empty_slots), hn::Set(di, slot + s)));
        probability = hn::IfThenZeroElse(empty, probability);
        dlogit = hn::IfThenZeroElse(empty, dlogit);
      }
      hn::Store(probability, d, logits + s * kLanes);
      hn::Store(dlogit, d, dlogits + s * kLanes);
    }
    if (row.drpb == nullptr || !row.owned) return;
    for (int s = 0; s < slots; ++s) {
      float* drpb = row.drpb + slot + s;
      const float* dlogit = dlogits + s * kLanes;
      const bool whole =
          contains(part_[2].owned_queries, tile.query) && contains(part_[2].owned_queries, tile.query + tile.count - 1);
      if (tile.one_bias && whole) {
        drpb[tile.bias[0]] += hn::GetLane(hn::SumOfLanes(d, hn::Load(d, dlogit)));
        continue;
      }
      for (int lane = 0; lane < tile.count; ++lane) {
        if (contains(part_[2].owned_queries, tile.query + lane)) drpb[tile.bias[lane]] += dlogit[lane];
      }
    }
  }

  void store_keys(std::int64_t k0, std::int64_t k1, const float* dkeys) const {
    const Span& owned = part_[2].owned_keys;
    const std::int64_t x = owned.start - first_place_;
    store_rows(dkeys + x * pitch_, pitch_, size_of(owned), dim_, static_cast<float>(problem_.scale),
               token_row(*pass_.gradients.key, k0, k1, owned.start));
    store_rows(dkeys + places_ * pitch_ + x * value_pitch_, value_pitch_, size_of(owned), value_dim_, 1.0f,
               token_row(*pass_.gradients.value, k0, k1, owned.start));
  }

  void store_queries(std::int64_t q0, std::int64_t q1, std::int64_t head) const {
    const float* from = ring_row(q0, q1, head) + layout_.dquery_t;
    for (const Tile& tile : tiles_) {
      const std::int64_t begin = std::max(tile.query, part_[2].owned_queries.start);
      const std::int64_t end = std::min(tile.query + tile.count, part_[2].owned_queries.end);
      if (begin < end) {
        transpose_out(from, round_up(dim_, 4), static_cast<float>(problem_.scale), rows_buffer_, pitch_);
        store_rows(rows_buffer_ + (begin - tile.query) * pitch_, pitch_, end - begin, dim_, 1.0f,
                   query_row(*pass_.gradients.query, true, q0, q1, begin, head));
      }
      from += layout_.size;
    }
  }

  const Pass& pass_;
  const Problem& problem_;
  const Task& task_;
  const std::array<Axis, kAxes>& axes_;
  const AxisGroup* group_[kAxes];
  const Grid outputs_;
  const std::int64_t heads_;  ///< query heads of the key head
  const std::int64_t dim_, value_dim_, pitch_, value_pitch_;

  AxisPart part_[kAxes];
  std::vector<Tile> tiles_;
  std::int64_t first_place_, places_;  ///< of the packed rows of keys

  TileLayout layout_;
  std::int64_t row_size_;                             ///< floats of a packed row of queries
  std::int64_t row_pitch_;                            ///< floats from channel to channel of a packed row of keys
  std::int64_t key_row_size_, dkey_row_size_;         ///< floats of keys and values, of dk and dv
  std::int64_t block_rows_;                           ///< rows of keys between passes over the queries
  std::int64_t ring_[2];                              ///< packed rows of queries on axes 0 and 1
  std::int64_t slot_rows_, score_size_, score_rows_;  ///< slots, floats of a row of scores, rows at a time

  float *ring_memory_, *key_memory_, *dkey_memory_, *probabilities_, *dlogits_, *rows_buffer_;
  std::int64_t* ring_tags_;
  float** pointers_[3];
  std::vector<std::vector<QueryRow>> rows_;
};

void run_task(const Pass& pass, const Task& task) {
  Sweep(pass, task).run();
}

}  // namespace
}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace natten::cpu::backward {

HWY_EXPORT(run_task);

void run_task(const Pass& pass, const Task& task) {
  NATTEN_DISPATCH(run_task)(pass, task);
}

}  // namespace natten::cpu::backward
#endif  // HWY_ONCE
