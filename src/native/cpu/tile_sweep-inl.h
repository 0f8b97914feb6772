// The sweep over rows of keys that the backward pass and the split form share: packed rows of queries in a ring, rows
// of keys in blocks, tiles of queries in between. What is multiplied, a subclass says. Included once per SIMD target.
#if defined(NATTEN_NATIVE_CPU_TILE_SWEEP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_TILE_SWEEP_INL_H_
#undef NATTEN_NATIVE_CPU_TILE_SWEEP_INL_H_
#else
#define NATTEN_NATIVE_CPU_TILE_SWEEP_INL_H_
#endif

#include <algorithm>
#include <cstring>
#include <vector>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "native/cpu/scratch.h"
#include "native/cpu/tensor.h"
#include "native/cpu/tile_products-inl.h"
#include "native/cpu/tile_rows-inl.h"
#include "native/cpu/tile_tasks.h"
#include "native/cpu/tuning.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

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

class TileSweep {
 public:
  virtual ~TileSweep() = default;
  TileSweep(const TileSweep&) = delete;
  TileSweep& operator=(const TileSweep&) = delete;

  void run() {
    if (places_ <= 0) return;
    const std::vector<Tile> tiles = std::move(tiles_);
    const std::size_t strips = plan_strips(tiles);
    std::size_t most = 0;
    for (std::size_t strip = 0; strip < strips; ++strip) {
      select_strip(tiles, strip, strips);
      most = std::max(most, scratch_bytes());
    }
    const std::int64_t owned_rows = size_of(part_[0].owned_keys) * size_of(part_[1].owned_keys);
    const std::int64_t carried = strips > 1 ? owned_rows * 2 * axes_[2].kernel_size * dkey_pitch() : 0;
    Scratch scratch(Scratch::bytes<float>(carried) + most);
    carry_ = scratch.take<float>(carried);
    std::byte* const start = scratch.position();
    for (std::size_t strip = 0; strip < strips; ++strip) {
      select_strip(tiles, strip, strips);
      scratch.rewind(start);
      take_memory(scratch);
      run_strip();
    }
    if (is_streamed_) hwy::FlushStream();
  }

 private:
  /// Tiles of a strip, the places of their keys, and which of these no other strip adds to.
  void select_strip(const std::vector<Tile>& tiles, std::size_t strip, std::size_t strips) {
    const auto first = [&](std::size_t s) { return tiles.size() * s / strips; };
    const auto& queries = group_[2]->queries;
    const auto begin = tiles.begin() + first(strip), end = tiles.begin() + first(strip + 1);
    tiles_.assign(begin, end);
    const std::int64_t carried_end = strip_keys_.end;
    const bool is_first = strip == 0, is_last = strip + 1 == strips;
    strip_keys_ = part_[2].keys;
    strip_queries_ = part_[2].queries;
    if (!is_first) {
      strip_keys_.start = queries[begin->query].keys.start;
      strip_queries_.start = begin->query;
    }
    final_keys_ = strip_keys_;
    if (!is_last) {
      strip_queries_.end = end->query;
      final_keys_.end = queries[end->query].keys.start;
      strip_keys_.end = std::max(queries[end->query - 1].keys.end, final_keys_.end);
    }
    carried_ = {strip_keys_.start, is_first ? strip_keys_.start : carried_end};
    first_place_ = strip_keys_.start;
    if (!tiles_.empty()) first_place_ = std::min(first_place_, tiles_.front().slot0);
    places_ = strip_keys_.end - first_place_;
    plan_memory();
  }

  /// Strips of tiles, whose packed queries stay in the second-level cache.
  std::size_t plan_strips(const std::vector<Tile>& tiles) {
    const std::size_t most = is_dense_ ? 1 : std::max<std::size_t>(tiles.size() / tuning::kLeastStripTiles, 1);
    std::size_t strips = 1;
    for (; strips < most; ++strips) {
      select_strip(tiles, 0, strips);
      if (static_cast<std::int64_t>(scratch_bytes()) <= tuning::kStripBytes) break;
    }
    return strips;
  }

  void run_strip() {
    const Span &k0s = part_[0].keys, &k1s = part_[1].keys;
    const auto block = [&](std::int64_t k1) { return Span{k1, std::min(k1 + block_rows_, k1s.end)}; };
    for (std::int64_t k0 = k0s.start; k0 < k0s.end; ++k0) {
      for (std::int64_t k1 = k1s.start; k1 < k1s.end; k1 += block_rows_) {
        pack_block(k0, block(k1));
        sweep_block(k0, block(k1));
      }
    }
  }

 protected:
  /// `tile_size`: floats of a packed tile. `widest`: channels of its widest rows.
  TileSweep(const Problem& problem, const Task& task, Wanted wanted)
      : problem_(problem),
        task_(task),
        axes_(task.plan->sample.axes),
        group_{&task.plan->group(0, task.group[0]), &task.plan->group(1, task.group[1]),
               &task.plan->group(2, task.group[2])},
        heads_(problem.heads / problem.kv_heads) {
    for (int a = 0; a < kAxes; ++a) part_[a] = make_part(*group_[a], task.owned[a], wanted, a == 2);
    tiles_ = make_tiles(axes_[2], *group_[2], part_[2].queries, kLanes);
    first_place_ = part_[2].keys.start;
    if (!tiles_.empty()) first_place_ = std::min(first_place_, tiles_.front().slot0);
    places_ = part_[2].keys.end - first_place_;
  }

  // To be set by the subclass before run().
  KeyTensor keys_[2];           ///< read, packed transposed [channel][place]
  KeyTensor dkeys_[2];          ///< summed, [place][channel pitch]
  std::int64_t tile_size_ = 0;  ///< floats of a packed tile of queries
  std::int64_t widest_ = 1;     ///< channels of the widest tensor
  bool is_dense_ = false;       ///< rows of keys are packed as they are, [place][channel pitch]
  bool packs_late_ = false;     ///< no packed rows of queries: multiply_block() packs and stores kDenseTiles at a time
  std::int64_t chunk_ = 0;      ///< not 0: multiply_block() also packs and stores so many keys at a time
  std::int64_t extra_ = 0;      ///< floats of memory of the subclass's own
  bool is_streamed_ = false;    ///< results are too large to stay in a cache

  virtual void pack_tile(std::int64_t q0, std::int64_t q1, std::int64_t head, const Tile& tile, float* to) = 0;
  virtual void store_tile(std::int64_t q0, std::int64_t q1, std::int64_t head, const Tile& tile, float* from) = 0;
  /// All products of some slots of a tile with a row of keys. `rows` are those that attend it, `owned` of them first,
  /// which have to be stored; `tile_start` is the tile's place in each.
  virtual void multiply(const Tile& tile, std::int64_t tile_start, const QueryRow* rows, int count, int owned, int slot,
                        int slots, std::int64_t block_row, bool owned_key) = 0;

  /// All products of a packed block.
  virtual void multiply_block(std::int64_t k0, const Span& k1s) {
    for (std::size_t t = 0; t < tiles_.size(); ++t) {
      for (std::int64_t k1 = k1s.start; k1 < k1s.end; ++k1) {
        multiply_row(tiles_[t], t * tile_size_, k1 - k1s.start, is_owned_key(k0, k1));
      }
    }
  }

  /// Packed keys from slot 0 of a tile's first query on.
  const float* packed_keys(int which, const Tile& tile, std::int64_t block_row) const {
    return key_memory_ + block_row * key_row_size_ + keys_[which].offset + tile.slot0 - first_place_;
  }
  float* summed_keys(int which, const Tile& tile, std::int64_t block_row) const {
    return dkey_memory_ + block_row * dkey_row_size_ + dkeys_[which].offset +
           (tile.slot0 - first_place_) * dkeys_[which].pitch();
  }

  TensorRows token_rows(const Tensor& tensor, std::int64_t k0, std::int64_t k1, std::int64_t k2) const {
    const Place at{group_[0]->token(k0), group_[1]->token(k1), group_[2]->token(k2)};
    return {row_of(tensor, task_.plan->batch, at, task_.kv_heads.start), tensor.strides[3] * group_[2]->token_step,
            tensor.type};
  }

  /// Rows from query `q2` on, of a tensor over tokens or over output positions.
  TensorRows query_rows(const Tensor& tensor, bool over_tokens, std::int64_t q0, std::int64_t q1, std::int64_t q2,
                        std::int64_t head) const {
    const auto& queries = group_[2]->queries;
    const std::int64_t index[] = {q0, q1, q2};
    Place at;
    for (int a = 0; a < kAxes; ++a) {
      at[a] = group_[a]->queries[index[a]].output * (over_tokens ? axes_[a].stride : 1);
    }
    const std::int64_t step = queries.size() > 1 ? queries[1].output - queries[0].output : 1;
    return {row_of(tensor, task_.plan->batch, at, task_.kv_heads.start * heads_ + head),
            tensor.strides[3] * step * (over_tokens ? axes_[2].stride : 1), tensor.type};
  }

  /// A tile's rows as float32, [lane][pitch]; zeros in lanes without a query.
  void load_tile(const TensorRows& rows, const Tile& tile, std::int64_t dim, float* to, std::int64_t pitch) const {
    load_rows(rows, tile.count, dim, to, pitch);
    std::fill_n(to + tile.count * pitch, (kLanes - tile.count) * pitch, 0.0f);
  }

  /// The queries of a tile that this task owns.
  Span owned_of(const Tile& tile) const {
    return {std::max(tile.query, part_[2].owned_queries.start),
            std::min(tile.query + tile.count, part_[2].owned_queries.end)};
  }

  /// Stores owned queries of a transposed tile, times a factor.
  void store_transposed(const float* from, std::int64_t dim, float factor, const Tile& tile, const Tensor& tensor,
                        bool over_tokens, std::int64_t q0, std::int64_t q1, std::int64_t head) const {
    const Span owned = owned_of(tile);
    if (size_of(owned) <= 0) return;
    const std::int64_t pitch = round_up(dim, kLanes);
    transpose_out(from, round_up(dim, 4), factor, buffer_, pitch);
    store_rows(buffer_ + (owned.start - tile.query) * pitch, pitch, size_of(owned), dim,
               query_rows(tensor, over_tokens, q0, q1, owned.start, head), is_streamed_);
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

  /// Lanes of a slot whose window does not hold it.
  HWY_INLINE hn::Mask<TileTag> empty_lanes(const Tile& tile, int slot) const {
    const hn::Rebind<std::int32_t, TileTag> di;
    return hn::RebindMask(TileTag(), hn::Gt(hn::LoadU(di, tile.empty_slots), hn::Set(di, slot)));
  }

  /// This row's position bias from the first slot of the kernel's last axis on.
  const float* bias_of(const float* rpb, const QueryRow& row) const {
    return rpb == nullptr ? nullptr : rpb + (task_.kv_heads.start * heads_ + row.head) * bias_table_ + row.bias;
  }
  HWY_INLINE TileVec bias_lanes(const Tile& tile, const float* bias) const {
    const hn::Rebind<std::int32_t, TileTag> di;
    return tile.one_bias ? hn::Set(TileTag(), bias[tile.bias[0]])
                         : hn::GatherIndex(TileTag(), bias, hn::LoadU(di, tile.bias));
  }

  void add_bias_gradient(const Tile& tile, const QueryRow& row, int slot, int slots, const float* dlogits) const {
    if (task_.drpb == nullptr || !row.owned) return;
    const Span owned = owned_of(tile);
    float* table = task_.drpb + row.head * bias_table_ + row.bias + slot;
    for (int s = 0; s < slots; ++s, ++table, dlogits += kLanes) {
      if (tile.one_bias && size_of(owned) == tile.count) {
        table[tile.bias[0]] += hn::GetLane(hn::SumOfLanes(TileTag(), hn::Load(TileTag(), dlogits)));
        continue;
      }
      for (std::int64_t query = owned.start; query < owned.end; ++query) {
        table[tile.bias[query - tile.query]] += dlogits[query - tile.query];
      }
    }
  }

  bool is_owned_query(std::int64_t q0, std::int64_t q1) const {
    return contains(part_[0].owned_queries, q0) && contains(part_[1].owned_queries, q1);
  }
  bool is_owned_key(std::int64_t k0, std::int64_t k1) const {
    return contains(part_[0].owned_keys, k0) && contains(part_[1].owned_keys, k1);
  }

  const Problem& problem_;
  const Task& task_;
  const std::array<Axis, kAxes>& axes_;
  const AxisGroup* group_[kAxes];
  const std::int64_t heads_;  ///< query heads of the key head
  AxisPart part_[kAxes];
  std::int64_t score_size_ = 0;  ///< floats of a row's scores, [slot][lane]
  float* scores_[2] = {};        ///< of some rows each
  float* buffer_ = nullptr;      ///< [lane][pitch of the widest rows, or slots]
  float** pointers_[3] = {};     ///< of some rows each
  std::vector<Tile> tiles_;
  std::int64_t first_place_, places_;  ///< of the packed rows of keys
  std::int64_t bias_table_ = 0;        ///< entries of one head
  std::int64_t key_row_size_ = 0, dkey_row_size_ = 0;
  float *key_memory_ = nullptr, *dkey_memory_ = nullptr, *extra_memory_ = nullptr;
  std::vector<std::vector<QueryRow>> rows_;  ///< of every row of keys of the block

 private:
  void multiply_row(const Tile& tile, std::int64_t tile_start, std::int64_t block_row, bool owned_key) {
    const std::vector<QueryRow>& rows = rows_[block_row];
    const int kernel_size = static_cast<int>(axes_[2].kernel_size);
    for_each_piece(kernel_size - tile.first_slot, slot_rows_, [&](int slot, int slots) {
      for_each_piece(static_cast<int>(rows.size()), score_rows_, [&](int first, int count) {
        int owned = 0;
        while (owned < count && rows[first + owned].owned) ++owned;
        multiply(tile, tile_start, rows.data() + first, count, owned, tile.first_slot + slot, slots, block_row,
                 owned_key);
      });
    });
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

  void plan_memory() {
    row_size_ = tile_size_ * (packs_late_ ? kDenseTiles : static_cast<std::int64_t>(tiles_.size()));
    bias_table_ = 1;
    for (const Axis& axis : axes_) bias_table_ *= 2 * axis.kernel_size - 1;

    // Loads of a tile reach kLanes - 1 places past its last key. An odd number of cache lines spreads the channels
    // over the sets of the cache.
    const std::int64_t line = 16;
    row_pitch_ = (round_up(places_ + kLanes, line) / line | 1) * line;
    key_row_size_ = dkey_row_size_ = 0;
    for (KeyTensor& key : keys_) {
      key.offset = key_row_size_;
      key_row_size_ += is_dense_ ? packed_places() * key.pitch() : row_pitch_ * key.packed_dim();
    }
    for (KeyTensor& key : dkeys_) {
      key.offset = dkey_row_size_;
      dkey_row_size_ += packed_places() * key.pitch();
    }
    const std::int64_t key_bytes = 4 * (key_row_size_ + dkey_row_size_);
    block_rows_ = std::clamp<std::int64_t>(tuning::kKeyBlockBytes / key_bytes, 1, tuning::kKeyBlockRows);
    block_rows_ = std::min(block_rows_, std::max<std::int64_t>(size_of(part_[1].keys), 1));
    if (chunk_ > 0) block_rows_ = 1;

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

  std::size_t scratch_bytes() const {
    const std::int64_t slots = ring_[0] * ring_[1];
    return Scratch::bytes<float>(slots * heads_ * row_size_) + Scratch::bytes<std::int64_t>(2 * slots) +
           Scratch::bytes<float>(block_rows_ * key_row_size_) + Scratch::bytes<float>(block_rows_ * dkey_row_size_) +
           2 * Scratch::bytes<float>(score_rows_ * score_size_) + Scratch::bytes<float>(buffer_size()) +
           3 * Scratch::bytes<float*>(score_rows_) + Scratch::bytes<float>(extra_);
  }
  std::int64_t packed_places() const { return chunk_ > 0 ? std::min(places_, chunk_) : places_; }

  void take_memory(Scratch& scratch) {
    const std::int64_t slots = ring_[0] * ring_[1];
    ring_memory_ = scratch.take<float>(slots * heads_ * row_size_);
    ring_tags_ = scratch.take<std::int64_t>(2 * slots);
    std::fill_n(ring_tags_, 2 * slots, std::int64_t{-1});
    key_memory_ = scratch.take<float>(block_rows_ * key_row_size_);
    dkey_memory_ = scratch.take<float>(block_rows_ * dkey_row_size_);
    for (float*& scores : scores_) scores = scratch.take<float>(score_rows_ * score_size_);
    buffer_ = scratch.take<float>(buffer_size());
    for (float**& pointers : pointers_) pointers = scratch.take<float*>(score_rows_);
    extra_memory_ = scratch.take<float>(extra_);
    // Places outside the axis read as zero.
    std::fill_n(key_memory_, block_rows_ * key_row_size_, 0.0f);
  }

  std::int64_t ring_slot(std::int64_t q0, std::int64_t q1) const { return (q0 % ring_[0]) * ring_[1] + q1 % ring_[1]; }
  float* ring_row(std::int64_t q0, std::int64_t q1, std::int64_t head) const {
    return ring_memory_ + (ring_slot(q0, q1) * heads_ + head) * row_size_;
  }

  void pack_query_row(std::int64_t q0, std::int64_t q1) {
    std::int64_t* tag = ring_tags_ + 2 * ring_slot(q0, q1);
    if (tag[0] == q0 && tag[1] == q1) return;
    tag[0] = q0;
    tag[1] = q1;
    for (std::int64_t head = 0; head < heads_; ++head) {
      float* to = ring_row(q0, q1, head);
      for (const Tile& tile : tiles_) {
        pack_tile(q0, q1, head, tile, to);
        to += tile_size_;
      }
    }
  }

  void pack_keys(const KeyTensor& key, std::int64_t k0, std::int64_t k1, float* to) const {
    if (is_dense_) {
      const std::int64_t first = strip_keys_.start;
      return load_rows(token_rows(*key.tensor, k0, k1, first), size_of(strip_keys_), key.dim,
                       to + (first - first_place_) * key.pitch(), key.pitch());
    }
    for (std::int64_t place = strip_keys_.start; place < strip_keys_.end;) {
      // Aligned stores: the first vector may be a partial one.
      const std::int64_t x = place - first_place_;
      const std::int64_t lane = x % kLanes;
      const std::int64_t count = std::min(kLanes - lane, strip_keys_.end - place);
      const TensorRows rows = token_rows(*key.tensor, k0, k1, place);
      if (count == kLanes && is_plain(rows, key.dim)) {
        transpose_in(reinterpret_cast<const float*>(rows.data), rows.stride, key.dim, 1.0f, to + x, row_pitch_);
      } else {
        std::fill_n(buffer_, kLanes * key.pitch(), 0.0f);
        load_rows(rows, count, key.dim, buffer_ + lane * key.pitch(), key.pitch());
        transpose_in(buffer_, key.pitch(), key.packed_dim(), 1.0f, to + x - lane, row_pitch_);
      }
      place += count;
    }
  }

  /// Rows of queries of this task that attend a row of keys and have something to do with it, owned ones first.
  void list_rows(std::int64_t k0, std::int64_t k1, std::vector<QueryRow>& rows) const {
    rows.clear();
    const bool owned_key = is_owned_key(k0, k1);
    const Span q0s = attending(0, {k0, k0 + 1}), q1s = attending(1, {k1, k1 + 1});
    for (const bool owned : {true, false}) {
      if (!owned && !owned_key) break;
      for (std::int64_t q0 = q0s.start; q0 < q0s.end; ++q0) {
        for (std::int64_t q1 = q1s.start; q1 < q1s.end; ++q1) {
          if (is_owned_query(q0, q1) != owned) continue;
          const auto &first = group_[0]->queries[q0], &second = group_[1]->queries[q1];
          const std::int64_t bias = (rpb_index(axes_[0], first.place, k0) * (2 * axes_[1].kernel_size - 1) +
                                     rpb_index(axes_[1], second.place, k1)) *
                                    (2 * axes_[2].kernel_size - 1);
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

  /// Some rows of keys, and the rows of queries that attend them.
  void pack_block(std::int64_t k0, const Span& k1s) {
    const Span q0s = attending(0, {k0, k0 + 1}), q1s = attending(1, k1s);
    const bool with_all = any_owned_key(k0, k1s);
    for (std::int64_t k1 = k1s.start; k1 < k1s.end; ++k1) {
      float* row = key_memory_ + (k1 - k1s.start) * key_row_size_;
      for (const KeyTensor& key : keys_) {
        if (key.tensor != nullptr && chunk_ == 0) pack_keys(key, k0, k1, row + key.offset);
      }
    }
    for (std::int64_t q0 = q0s.start; q0 < q0s.end; ++q0) {
      for (std::int64_t q1 = q1s.start; q1 < q1s.end; ++q1) {
        if (!packs_late_ && (with_all || is_owned_query(q0, q1))) pack_query_row(q0, q1);
      }
    }
    if (with_all && chunk_ == 0) std::fill_n(dkey_memory_, block_rows_ * dkey_row_size_, 0.0f);
    for (std::int64_t k1 = k1s.start; k1 < k1s.end; ++k1) {
      if (is_owned_key(k0, k1)) copy_carried(k0, k1, carried_, dkey_memory_ + (k1 - k1s.start) * dkey_row_size_, false);
    }
    rows_.resize(size_of(k1s));
    for (std::int64_t k1 = k1s.start; k1 < k1s.end; ++k1) list_rows(k0, k1, rows_[k1 - k1s.start]);
  }

  /// A packed block, past which all tiles of queries go.
  void sweep_block(std::int64_t k0, const Span& k1s) {
    const Span q0s = attending(0, {k0, k0 + 1}), q1s = attending(1, k1s);
    multiply_block(k0, k1s);
    for (std::int64_t k1 = k1s.start; k1 < k1s.end && chunk_ == 0; ++k1) {
      if (is_owned_key(k0, k1)) store_keys(k0, k1, dkey_memory_ + (k1 - k1s.start) * dkey_row_size_);
    }
    for (std::int64_t q0 = q0s.start; q0 < q0s.end && !packs_late_; ++q0) {
      if (group_[0]->queries[q0].keys.end != k0 + 1) continue;
      for (std::int64_t q1 = q1s.start; q1 < q1s.end; ++q1) {
        if (is_owned_query(q0, q1) && contains(k1s, group_[1]->queries[q1].keys.end - 1)) store_query_row(q0, q1);
      }
    }
  }

  std::int64_t dkey_pitch() const { return dkeys_[0].pitch() + dkeys_[1].pitch(); }

  /// Sums at the places that two strips add to, from one strip to the next.
  void copy_carried(std::int64_t k0, std::int64_t k1, const Span& places, float* row, bool save) const {
    if (size_of(places) <= 0) return;
    const std::int64_t index =
        (k0 - part_[0].owned_keys.start) * size_of(part_[1].owned_keys) + k1 - part_[1].owned_keys.start;
    float* carry = carry_ + index * 2 * axes_[2].kernel_size * dkey_pitch();
    for (const KeyTensor& key : dkeys_) {
      float* sums = row + key.offset + (places.start - first_place_) * key.pitch();
      const std::int64_t count = size_of(places) * key.pitch();
      save ? std::copy_n(sums, count, carry) : std::copy_n(carry, count, sums);
      carry += count;
    }
  }

  void store_keys(std::int64_t k0, std::int64_t k1, float* row) const {
    const Span owned{std::max(part_[2].owned_keys.start, final_keys_.start),
                     std::min(part_[2].owned_keys.end, final_keys_.end)};
    for (const KeyTensor& key : dkeys_) {
      if (key.tensor == nullptr || size_of(owned) <= 0) continue;
      store_rows(row + key.offset + (owned.start - first_place_) * key.pitch(), key.pitch(), size_of(owned), key.dim,
                 token_rows(*key.tensor, k0, k1, owned.start), is_streamed_);
    }
    copy_carried(k0, k1, {final_keys_.end, strip_keys_.end}, row, true);
  }

  void store_query_row(std::int64_t q0, std::int64_t q1) {
    for (std::int64_t head = 0; head < heads_; ++head) {
      float* from = ring_row(q0, q1, head);
      for (const Tile& tile : tiles_) {
        store_tile(q0, q1, head, tile, from);
        from += tile_size_;
      }
    }
  }

  Span strip_keys_{0, 0};                  ///< places
  Span final_keys_{0, 0}, carried_{0, 0};  ///< places that this strip is the last to add to; that the last one added to
  Span strip_queries_{0, 0};
  float* carry_ = nullptr;              ///< of every owned row of keys
  std::int64_t row_size_ = 0;           ///< floats of a packed row of queries
  std::int64_t row_pitch_ = 0;          ///< floats from channel to channel of a packed row of keys
  std::int64_t block_rows_ = 1;         ///< rows of keys between passes over the queries
  std::int64_t ring_[2] = {1, 1};       ///< packed rows of queries on axes 0 and 1
  int slot_rows_ = 1, score_rows_ = 1;  ///< slots and rows of queries of one call of multiply()
  float* ring_memory_ = nullptr;
  std::int64_t* ring_tags_ = nullptr;
};

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_TILE_SWEEP_INL_H_
