// The memory of a sweep over rows of keys: what is packed of a task's queries and keys, and where; which queries attend
// a row of keys, and which of both the task owns. Included once per SIMD target.
#if defined(NATTEN_NATIVE_CPU_SWEEP_MEMORY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_SWEEP_MEMORY_INL_H_
#undef NATTEN_NATIVE_CPU_SWEEP_MEMORY_INL_H_
#else
#define NATTEN_NATIVE_CPU_SWEEP_MEMORY_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <vector>

#include "hwy/highway.h"
#include "native/cpu/region-inl.h"
#include "native/cpu/scratch.h"
#include "native/cpu/tile_products-inl.h"
#include "native/cpu/tuning.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {

/// Tiles of queries that share the keys of a dense block.
inline constexpr int kDenseTiles = 2;

/// A tensor over the keys' tokens, and its channels.
struct KeyTensor {
  const Tensor* tensor = nullptr;
  std::int64_t dim = 0;
  std::int64_t offset = 0;  ///< of its rows in the sweep's memory, in floats

  std::int64_t pitch() const { return round_up(dim, kLanes); }
  std::int64_t packed_dim() const { return round_up(dim, 4); }
};

/// One packed row of queries that attends the current row of keys.
struct QueryRow {
  float* tiles;
  bool owned;
  std::int64_t q0, q1, head;  ///< indices in their groups, and in the heads of the task
  std::int64_t bias;          ///< entry of the position bias of this row of keys, in the table of one head
  std::int64_t slot;          ///< first slot of this row of keys
};

class SweepMemory {
 protected:
  SweepMemory(const Problem& problem, const Task& task, Wanted wanted)
      : problem_(problem),
        region_(task, wanted, kAxes - 1),
        axes_(task.plan->sample.axes),
        group_(region_.group),
        part_(region_.part),
        heads_(problem.heads / problem.kv_heads),
        bias_table_(bias_entries(problem)),
        checks_finite_(axes_[2].is_causal && axes_[2].gna_stride > 1) {}

  /// Tiles of the last axis and the places of their keys.
  void make_row() {
    tiles_ = make_tiles(axes_[2], *group_[2], part_[2].queries, kLanes);
    set_places(part_[2].keys);
  }

  /// Of the packed keys: from the first that any tile loads, which is an empty slot where it lies before the axis. Keys
  /// are packed in aligned vectors.
  void set_places(const Span& keys) {
    std::int64_t before = 0;
    for (const Tile& tile : tiles_) before = std::max(before, keys.start - tile.slot0 - tile.first_slot);
    first_place_ = keys.start - (is_dense_ ? 0 : round_up(before, kLanes));
    places_ = keys.end - first_place_;
  }

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

  bool is_owned_query(std::int64_t q0, std::int64_t q1) const {
    return contains(part_[0].owned_queries, q0) && contains(part_[1].owned_queries, q1);
  }
  bool is_owned_key(std::int64_t k0, std::int64_t k1) const {
    return contains(part_[0].owned_keys, k0) && contains(part_[1].owned_keys, k1);
  }

  /// Rows of queries, which attend a row of keys, that have something to do with it, owned ones first.
  void list_rows(std::int64_t k0, std::int64_t k1, const Span& q0s, const Span& q1s,
                 std::vector<QueryRow>& rows) const {
    rows.clear();
    const bool owned_key = is_owned_key(k0, k1);
    for (const bool owned : {true, false}) {
      if (!owned && !owned_key) break;
      for (std::int64_t q0 = q0s.start; q0 < q0s.end; ++q0) {
        for (std::int64_t q1 = q1s.start; q1 < q1s.end; ++q1) {
          if (is_owned_query(q0, q1) != owned) continue;
          const auto &first = group_[0]->queries[q0], &second = group_[1]->queries[q1];
          const std::int64_t bias = region_.bias_row(q0, q1, k0, k1);
          const std::int64_t slot = (slot_of_key(axes_[0], first.place, first.keys.start, k0) * axes_[1].kernel_size +
                                     slot_of_key(axes_[1], second.place, second.keys.start, k1)) *
                                    axes_[2].kernel_size;
          for (std::int64_t head = 0; head < heads_; ++head) {
            rows.push_back({ring_row(q0, q1, head), owned, q0, q1, head, bias, slot});
          }
        }
      }
    }
  }

  bool any_owned_key(std::int64_t k0, const Span& k1s) const {
    for (std::int64_t k1 = k1s.start; k1 < k1s.end; ++k1) {
      if (is_owned_key(k0, k1)) return true;
    }
    return false;
  }

  /// Whether the query's last row of keys is among these.
  bool is_done(std::int64_t q0, std::int64_t q1, std::int64_t k0, const Span& k1s) const {
    return group_[0]->queries[q0].keys.end == k0 + 1 && contains(k1s, group_[1]->queries[q1].keys.end - 1);
  }

  void plan_memory() {
    const auto tiles = static_cast<std::int64_t>(tiles_.size());
    row_size_ = tile_size_ * (is_dense_ ? kDenseTiles : packs_late_ ? 1 : tiles);
    // Loads of a tile reach kLanes - 1 places past its last key. An odd number of cache lines spreads the channels
    // over the sets of the cache.
    const std::int64_t line = 16;
    row_pitch_ = (round_up(places_ + kLanes, line) / line | 1) * line;
    key_row_size_ = dkey_row_size_ = 0;
    for (KeyTensor& key : keys_) {
      key.offset = key_row_size_;
      key_row_size_ += packed_size(key);
    }
    for (KeyTensor& key : dkeys_) {
      key.offset = dkey_row_size_;
      dkey_row_size_ += packed_places() * key.pitch();
    }
    const std::int64_t key_bytes = 4 * (key_row_size_ + dkey_row_size_);
    block_rows_ = packs_anew() ? std::max<std::int64_t>(sweep_limit() / (tuning::kAnewBlocks * key_bytes), 1)
                               : std::clamp<std::int64_t>(tuning::kKeyBlockBytes / key_bytes, 1, tuning::kKeyBlockRows);
    block_rows_ = std::min(block_rows_, std::max<std::int64_t>(size_of(part_[1].keys), 1));
    if (is_dense_) block_rows_ = 1;

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
    if (packs_anew()) {
      waiting_[0] = ring_[0];
      waiting_[1] = ring_[1];
      ring_[0] = 1;
      ring_[1] = std::max<std::int64_t>(sweep_limit() / (tuning::kAnewQueries * 4 * heads_ * tile_size_), 1);
    }
    slot_rows_ = std::min<int>(static_cast<int>(axes_[2].kernel_size), tuning::kSlotBlock);
    score_size_ = round_up(slot_rows_, 4) * kLanes;
    const std::int64_t most_rows = ring_[0] * ring_[1] * heads_;
    score_rows_ = static_cast<int>(std::clamp<std::int64_t>(tuning::kScoreBytes / (4 * score_size_), 1, most_rows));
    if (is_dense_) {
      score_size_ = tuning::kDenseKeys * kLanes;
      score_rows_ = kDenseTiles;
    }
  }

  std::int64_t buffer_size() const {
    // Transposes work on groups of 4 channels, also where a vector is shorter.
    return kLanes * round_up(std::max<std::int64_t>(widest_, slot_rows_), std::max(kLanes, 4));
  }

  std::int64_t packed_size(const KeyTensor& key) const {
    return is_dense_ ? packed_places() * key.pitch() : row_pitch_ * key.packed_dim();
  }
  std::int64_t packed_places() const { return is_dense_ ? std::min(places_, chunk_) : places_; }

  void take_memory(Scratch& scratch) {
    const std::int64_t slots = ring_[0] * ring_[1];
    ring_memory_ = scratch.take<float>(slots * heads_ * row_size_);
    ring_tags_ = scratch.take<std::int64_t>(2 * slots);
    key_memory_ = scratch.take<float>(block_rows_ * key_row_size_);
    dkey_memory_ = scratch.take<float>(block_rows_ * dkey_row_size_);
    for (float*& scores : scores_) scores = scratch.take<float>(score_rows_ * score_size_);
    buffer_ = scratch.take<float>(buffer_size());
    for (float**& pointers : pointers_) pointers = scratch.take<float*>(score_rows_);
    own_memory_ = scratch.take<float>(own_size_);
    const auto tiles = static_cast<std::int64_t>(tiles_.size());
    waiting_memory_ =
        scratch.take<float>(packs_anew() ? waiting_[0] * waiting_[1] * heads_ * tiles * waiting_size_ : 0);
  }
  std::size_t scratch_bytes() {
    return Scratch::bytes_of([&](Scratch& scratch) { take_memory(scratch); });
  }
  void clear_memory() const {
    std::fill_n(ring_tags_, 2 * ring_[0] * ring_[1], std::int64_t{-1});
    // Places outside the axis read as zero.
    std::fill_n(key_memory_, block_rows_ * key_row_size_, 0.0f);
  }

  /// Queries are packed again for each block of keys.
  bool packs_anew() const { return packs_late_ && !is_dense_; }

  std::int64_t ring_slot(std::int64_t q0, std::int64_t q1) const { return (q0 % ring_[0]) * ring_[1] + q1 % ring_[1]; }
  float* waiting(std::int64_t q0, std::int64_t q1, std::int64_t head, std::size_t tile) const {
    const std::int64_t row = (q0 % waiting_[0] * waiting_[1] + q1 % waiting_[1]) * heads_ + head;
    return waiting_memory_ + (row * static_cast<std::int64_t>(tiles_.size()) + tile) * waiting_size_;
  }
  float* ring_row(std::int64_t q0, std::int64_t q1, std::int64_t head) const {
    return ring_memory_ + (ring_slot(q0, q1) * heads_ + head) * row_size_;
  }

  /// Of the problem, where heads of a task's own are counted from its first.
  std::int64_t query_head(std::int64_t head) const { return region_.task.kv_heads.start * heads_ + head; }

  /// This row's position bias from the first slot of the kernel's last axis on.
  const float* bias_of(const float* rpb, const QueryRow& row) const {
    return rpb == nullptr ? nullptr : rpb + query_head(row.head) * bias_table_ + row.bias;
  }

  /// What is multiplied by weights is checked where a weight of zero, of an empty slot, may meet what others attend.
  void check_finite(const float* from, std::int64_t count) {
    if (!checks_finite_ || met_infinity_) return;
    const TileTag d;
    TileVec sum0 = hn::Zero(d), sum1 = sum0, sum2 = sum0, sum3 = sum0;  // one alone would wait for itself
    const auto added = [&](std::int64_t i, TileVec sum) __attribute__((always_inline)) {
      return hn::MulAdd(hn::Load(d, from + i), hn::Zero(d), sum);
    };
    std::int64_t i = 0;
    for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
      sum0 = added(i, sum0);
      sum1 = added(i + kLanes, sum1);
      sum2 = added(i + 2 * kLanes, sum2);
      sum3 = added(i + 3 * kLanes, sum3);
    }
    for (; i < count; i += kLanes) sum0 = added(i, sum0);
    met_infinity_ = hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3)))) != 0.0f;
  }

  const Problem& problem_;
  Region region_;
  const std::array<Axis, kAxes>& axes_;
  const AxisGroup* const* const group_;
  const AxisPart* const part_;
  const std::int64_t heads_;       ///< query heads of the key head
  const std::int64_t bias_table_;  ///< entries of one head
  bool checks_finite_;             ///< an empty slot may be a key that other queries attend
  bool met_infinity_ = false;      ///< or a NaN, see check_finite()
  std::int64_t score_size_ = 0;    ///< floats of a row's scores, [slot][lane]
  float* scores_[2] = {};          ///< of some rows each
  float* buffer_ = nullptr;        ///< [lane][pitch of the widest rows, or slots]
  float** pointers_[3] = {};       ///< of some rows each
  std::vector<Tile> tiles_;
  std::int64_t first_place_, places_;  ///< of the packed rows of keys
  std::int64_t key_row_size_ = 0, dkey_row_size_ = 0;
  float *key_memory_ = nullptr, *dkey_memory_ = nullptr, *own_memory_ = nullptr;

  // To be set by the subclass before run().
  KeyTensor keys_[2];              ///< read, packed transposed [channel][place]
  KeyTensor dkeys_[2];             ///< summed, [place][channel pitch]
  std::int64_t tile_size_ = 0;     ///< floats of a packed tile of queries
  std::int64_t widest_ = 1;        ///< channels of the widest tensor
  bool is_dense_ = false;          ///< multiply_block() packs rows of keys, as they are: [place][channel pitch]
  bool packs_late_ = false;        ///< no ring of packed queries: multiply_block() packs and stores some at a time
  std::int64_t chunk_ = 0;         ///< keys of a dense block that multiply_block() packs and stores at a time
  std::int64_t own_size_ = 0;      ///< floats of memory of the subclass's own
  std::int64_t waiting_size_ = 0;  ///< floats of what is kept of a tile that is packed again
  bool is_streamed_ = false;       ///< results are too large to stay in a cache

  std::int64_t row_size_ = 0;           ///< floats of a packed row of queries
  std::int64_t row_pitch_ = 0;          ///< floats from channel to channel of a packed row of keys
  std::int64_t block_rows_ = 1;         ///< rows of keys between passes over the queries
  std::int64_t ring_[2] = {1, 1};       ///< packed rows of queries on axes 0 and 1
  std::int64_t waiting_[2] = {1, 1};    ///< rows of queries whose sums wait for the next block of keys
  int slot_rows_ = 1, score_rows_ = 1;  ///< slots and rows of queries of one call of multiply()
  float *ring_memory_ = nullptr, *waiting_memory_ = nullptr;
  std::int64_t* ring_tags_ = nullptr;
};

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_SWEEP_MEMORY_INL_H_
