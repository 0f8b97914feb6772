// The sweep over rows of keys that the backward pass and the split form share: packed rows of queries in a ring, rows
// of keys in blocks, tiles of queries in between. What is multiplied, a subclass says. Included once per SIMD target.
#if defined(NATTEN_NATIVE_CPU_TILE_SWEEP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_TILE_SWEEP_INL_H_
#undef NATTEN_NATIVE_CPU_TILE_SWEEP_INL_H_
#else
#define NATTEN_NATIVE_CPU_TILE_SWEEP_INL_H_
#endif

#include <algorithm>
#include <vector>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "native/cpu/sweep_memory-inl.h"
#include "native/cpu/tile_products-inl.h"
#include "native/cpu/tile_rows-inl.h"
#include "native/cpu/tuning.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

class TileSweep : protected SweepMemory {
 public:
  virtual ~TileSweep() = default;
  TileSweep(const TileSweep&) = delete;
  TileSweep& operator=(const TileSweep&) = delete;

  void run() {
    const AxisPart unrolled = part_[2];
    if (!is_dense_) make_folded_row();
    if (places_ <= 0) return;
    std::vector<Tile> tiles = tiles_;
    std::size_t strips = plan_strips(tiles, is_folded_ ? tuning::kFoldedBytes : tuning::kStripBytes);
    if (is_folded_ && strips > 1) {
      is_folded_ = false;
      region_.part[2] = unrolled;
      make_row();
      tiles = tiles_;
      strips = plan_strips(tiles, tuning::kStripBytes);
    }
    std::size_t size = bytes_of(tiles, strips);
    if (can_pack_anew() && static_cast<std::int64_t>(size) > sweep_limit()) {
      packs_late_ = true;
      // Strips only where what waits for the next block, or a row of keys, still exceeds the limit.
      if (!is_folded_) {
        waiting_size_ == 0 ? make_folded_row() : make_row();
        tiles = tiles_;
      }
      size = bytes_of(tiles, strips = 1);
      const std::size_t most = is_folded_ ? 1 : tiles.size() / tuning::kLeastStripTiles;
      for (std::size_t more = 2; more <= most && static_cast<std::int64_t>(size) > sweep_limit(); ++more) {
        const std::size_t bytes = bytes_of(tiles, more);
        if (bytes >= size) continue;
        size = bytes;
        strips = more;
      }
    }
    Scratch scratch(size);
    carry_ = scratch.take<float>(carried_floats(strips));
    const std::uintptr_t start = scratch.position();
    for (std::size_t strip = 0; strip < strips; ++strip) {
      select_strip(tiles, strip, strips);
      scratch.rewind(start);
      take_memory(scratch);
      clear_memory();
      run_strip();
    }
    if (is_streamed_) hwy::FlushStream();
  }

 private:
  std::int64_t carried_floats(std::size_t strips) const {
    const std::int64_t owned_rows = size_of(part_[0].owned_keys) * size_of(part_[1].owned_keys);
    return strips > 1 ? owned_rows * 2 * axes_[2].kernel_size * dkey_pitch() : 0;
  }
  HWY_NOINLINE std::size_t bytes_of(const std::vector<Tile>& tiles, std::size_t strips) {
    std::size_t most = 0;
    for (std::size_t strip = 0; strip < strips; ++strip) {
      select_strip(tiles, strip, strips);
      most = std::max(most, scratch_bytes());
    }
    return Scratch::bytes<float>(carried_floats(strips)) + most;
  }

  /// Adds the sums past the ends to those inside.
  void fold_sums(float* row) const {
    const Span& owned = part_[2].owned_keys;
    for (const KeyTensor& key : dkeys_) {
      const TileTag d;
      float* sums = row + key.offset - first_place_ * key.pitch();
      const auto add = [&](const Span& outside, std::int64_t turn) {
        const float* from = sums + outside.start * key.pitch();
        float* to = sums + (outside.start + turn) * key.pitch();
        for (std::int64_t i = 0; i < size_of(outside) * key.pitch(); i += kLanes) {
          hn::Store(hn::Add(hn::Load(d, to + i), hn::Load(d, from + i)), d, to + i);
        }
      };
      add({strip_keys_.start, owned.start}, size_of(owned));
      add({owned.end, strip_keys_.end}, -size_of(owned));
    }
  }

  /// Tiles of a strip, the places of their keys, and which of these no other strip adds to.
  void select_strip(const std::vector<Tile>& tiles, std::size_t strip, std::size_t strips) {
    const auto first = [&](std::size_t s) { return tiles.size() * s / strips; };
    const auto& queries = group_[2]->queries;
    const auto begin = tiles.begin() + first(strip), end = tiles.begin() + first(strip + 1);
    tiles_.assign(begin, end);
    const std::int64_t carried_end = strip_keys_.end;
    const bool is_first = strip == 0, is_last = strip + 1 == strips;
    strip_keys_ = part_[2].keys;
    if (!is_first) {
      strip_keys_.start = queries[begin->query].keys.start;
    }
    final_keys_ = strip_keys_;
    if (!is_last) {
      final_keys_.end = queries[end->query].keys.start;
      strip_keys_.end = std::max(queries[end->query - 1].keys.end, final_keys_.end);
    }
    carried_ = {strip_keys_.start, is_first ? strip_keys_.start : carried_end};
    set_places(strip_keys_);
    plan_memory();
  }

  /// Strips of tiles, whose packed queries stay in the second-level cache.
  std::size_t plan_strips(const std::vector<Tile>& tiles, std::int64_t most_bytes) {
    const std::size_t most = is_dense_ ? 1 : std::max<std::size_t>(tiles.size() / tuning::kLeastStripTiles, 1);
    std::size_t strips = 1;
    for (; strips < most; ++strips) {
      select_strip(tiles, 0, strips);
      if (static_cast<std::int64_t>(scratch_bytes()) <= most_bytes) break;
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
  using SweepMemory::SweepMemory;

  /// make_row(); where a task has all keys of a circular last axis, it needs no query twice: the sums at places past
  /// the ends are those of keys inside. A sweep of dense blocks says itself when.
  void make_folded_row() {
    AxisPart& part = region_.part[2];
    const AxisGroup& group = *group_[2];
    const bool is_whole = group.key_rows.period > 0 && size_of(part.owned_keys) == group.key_rows.period;
    if (!is_whole || size_of(part.queries) <= group.outputs.period) return make_row();
    is_folded_ = true;
    AxisPart once = make_part(group, group.owned_queries, {true, false}, true);
    once.owned_keys = part.owned_keys;
    once.keys = {std::min(once.keys.start, once.owned_keys.start), std::max(once.keys.end, once.owned_keys.end)};
    if (size_of(part.owned_queries) == 0) once.owned_queries = part.owned_queries;
    part = once;
    make_row();
  }

  /// Whether multiply_block() does without a ring of packed queries where packs_anew().
  virtual bool can_pack_anew() const { return false; }
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

  /// Stores owned queries of a transposed tile, times a factor, to rows_from(the first of them).
  template <class RowsFrom>
  void store_transposed(const float* from, std::int64_t dim, float factor, const Tile& tile,
                        const RowsFrom& rows_from) const {
    const Span owned = owned_of(tile);
    if (size_of(owned) <= 0) return;
    const std::int64_t pitch = round_up(dim, kLanes);
    transpose_out(from, round_up(dim, 4), factor, buffer_, pitch);
    store_rows(buffer_ + (owned.start - tile.query) * pitch, pitch, size_of(owned), dim, rows_from(owned.start),
               is_streamed_);
  }

  /// scores[row][slot] = the products of rows of queries with some slots, from packed keys of the first of these on.
  void multiply_slots(const Tile& tile, const float* keys, std::int64_t channels, float* const* queries, int rows,
                      int slots, float* scores) const {
    // Slots beyond those that fit the registers read the queries again.
    const auto most = static_cast<int>(
        std::clamp<std::int64_t>(tuning::kScoreQueryBytes / (4 * kLanes * channels), 1, kMostScoreRows));
    for_each_piece(rows, most, [&](int row, int count) {
      float* score_rows[kMostScoreRows];
      for (int r = 0; r < count; ++r) score_rows[r] = scores + (row + r) * score_size_;
      multiply_scores({keys, row_pitch_, channels, tile.offset, queries + row, score_rows, 0}, count, slots,
                      tile.is_shift);
    });
  }

  /// Adds the keys of some slots from `first` on, weighted by their scores, to rows of queries.
  void add_keys(const Tile& tile, const float* keys, std::int64_t channels, float* const* queries, int rows, int first,
                int slots, float* scores) {
    if (!is_careful(tile)) {
      return for_each_piece(slots, kMostSlots, [&](int slot, int slot_count) {
        for_each_piece(rows, most_rows(slot_count), [&](int row, int row_count) {
          kAddKeys[slot_count - 1][row_count - 1][tile.is_shift](
              {keys + slot, row_pitch_, channels, tile.offset, queries + row,
               scores + row * score_size_ + slot * kLanes, score_size_});
        });
      });
    }
    const TileTag d;
    const TileIndices indices = hn::SetTableIndices(d, tile.offset);
    for (int s = 0; s < slots; ++s) {
      const auto is_empty = empty_lanes(tile, first + s);
      for (int r = 0; r < rows; ++r) {
        const auto score = hn::Load(d, scores + r * score_size_ + s * kLanes);
        for (std::int64_t c = 0; c < channels; ++c) {
          const auto key = hn::IfThenZeroElse(is_empty, load_keys<false>(keys + c * row_pitch_ + s, indices));
          float* query = queries[r] + c * kLanes;
          hn::Store(hn::MulAdd(score, key, hn::Load(d, query)), d, query);
        }
      }
    }
  }

  /// The transpose: adds rows of queries to the keys.
  void add_queries(const Tile& tile, const float* scores, const float* const* queries, int rows, int first, int slots,
                   float* keys, std::int64_t pitch) {
    const auto add = [&](int query, int count, int begin) {
      for_each_piece(slots - begin, kMostKeys, [&](int piece, int slot_count) {
        const int slot = begin + piece;
        for (std::int64_t c = 0; c < pitch; c += 2 * kLanes) {
          const int vecs = c + kLanes < pitch ? 2 : 1;
          kAddQueries[slot_count - 1][vecs - 1]({scores + slot * kLanes + query, score_size_, queries,
                                                 query * pitch + c, rows, keys + slot * pitch + c, pitch,
                                                 tile.offset + query, count});
        }
      });
    };
    if (!is_careful(tile)) return add(0, tile.count, 0);
    for (int q = 0; q < tile.count; ++q) add(q, 1, std::clamp(tile.empty_slots[q] - first, 0, slots));
  }

  /// Lanes of a slot whose window does not hold it.
  HWY_INLINE hn::Mask<TileTag> empty_lanes(const Tile& tile, int slot) const {
    const hn::Rebind<std::int32_t, TileTag> di;
    return hn::RebindMask(TileTag(), hn::Gt(hn::LoadU(di, tile.empty_slots), hn::Set(di, slot)));
  }

  HWY_INLINE TileVec bias_lanes(const Tile& tile, const float* bias) const {
    const hn::Rebind<std::int32_t, TileTag> di;
    return tile.one_bias ? hn::Set(TileTag(), bias[tile.bias[0]])
                         : hn::GatherIndex(TileTag(), bias, hn::LoadU(di, tile.bias));
  }

  void add_bias_gradient(const Tile& tile, const QueryRow& row, int slot, int slots, const float* dlogits) const {
    if (region_.task.drpb == nullptr || !row.owned) return;
    const Span owned = owned_of(tile);
    float* table = region_.task.drpb + row.head * bias_table_ + row.bias + slot;
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

  /// Stores sums at owned keys of `keys`. A row of a dense block begins with these.
  void store_keys(std::int64_t k0, std::int64_t k1, const Span& keys, float* row) const {
    if (is_folded_) fold_sums(row);
    const std::int64_t first = is_dense_ ? keys.start : first_place_;
    const Span owned{std::max(part_[2].owned_keys.start, keys.start), std::min(part_[2].owned_keys.end, keys.end)};
    for (const KeyTensor& key : dkeys_) {
      if (key.tensor == nullptr || size_of(owned) <= 0) continue;
      store_rows(row + key.offset + (owned.start - first) * key.pitch(), key.pitch(), size_of(owned), key.dim,
                 region_.key_rows(*key.tensor, region_.task.kv_heads.start, k0, k1, owned.start), is_streamed_);
    }
    copy_carried(k0, k1, {final_keys_.end, strip_keys_.end}, row, true);
  }

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

  std::vector<std::vector<QueryRow>> rows_;  ///< of every row of keys of the block
  bool is_folded_ = false;                   ///< see make_folded_row()

 private:
  bool is_careful(const Tile& tile) const { return met_infinity_ && tile.is_masked; }

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
    for (std::int64_t place = strip_keys_.start; place < strip_keys_.end; place += kLanes) {
      pack_transposed(region_.key_rows(*key.tensor, region_.task.kv_heads.start, k0, k1, place),
                      std::min<std::int64_t>(kLanes, strip_keys_.end - place), key.dim, 1.0f, buffer_,
                      to + (place - first_place_), row_pitch_);
    }
  }

  /// Some rows of keys, and the rows of queries that attend them.
  void pack_block(std::int64_t k0, const Span& k1s) {
    const Span q0s = attending(0, {k0, k0 + 1}), q1s = attending(1, k1s);
    const bool with_all = any_owned_key(k0, k1s);
    for (std::int64_t k1 = k1s.start; k1 < k1s.end && !is_dense_; ++k1) {
      float* row = key_memory_ + (k1 - k1s.start) * key_row_size_;
      for (const KeyTensor& key : keys_) {
        if (key.tensor != nullptr) pack_keys(key, k0, k1, row + key.offset);
      }
      check_finite(row + keys_[0].offset, packed_size(keys_[0]));
    }
    for (std::int64_t q0 = q0s.start; q0 < q0s.end; ++q0) {
      for (std::int64_t q1 = q1s.start; q1 < q1s.end; ++q1) {
        if (!packs_late_ && (with_all || is_owned_query(q0, q1))) pack_query_row(q0, q1);
      }
    }
    if (with_all && !is_dense_) std::fill_n(dkey_memory_, block_rows_ * dkey_row_size_, 0.0f);
    for (std::int64_t k1 = k1s.start; k1 < k1s.end; ++k1) {
      if (is_owned_key(k0, k1)) copy_carried(k0, k1, carried_, dkey_memory_ + (k1 - k1s.start) * dkey_row_size_, false);
    }
    rows_.resize(size_of(k1s));
    if (packs_anew()) return;
    for (std::int64_t k1 = k1s.start; k1 < k1s.end; ++k1) {
      list_rows(k0, k1, attending(0, {k0, k0 + 1}), attending(1, {k1, k1 + 1}), rows_[k1 - k1s.start]);
    }
  }

  /// A packed block, past which all tiles of queries go.
  void sweep_block(std::int64_t k0, const Span& k1s) {
    const Span q0s = attending(0, {k0, k0 + 1}), q1s = attending(1, k1s);
    multiply_block(k0, k1s);
    for (std::int64_t k1 = k1s.start; k1 < k1s.end && !is_dense_; ++k1) {
      if (is_owned_key(k0, k1)) store_keys(k0, k1, final_keys_, dkey_memory_ + (k1 - k1s.start) * dkey_row_size_);
    }
    for (std::int64_t q0 = q0s.start; q0 < q0s.end && !packs_late_; ++q0) {
      for (std::int64_t q1 = q1s.start; q1 < q1s.end; ++q1) {
        if (is_owned_query(q0, q1) && is_done(q0, q1, k0, k1s)) store_query_row(q0, q1);
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
  float* carry_ = nullptr;                 ///< of every owned row of keys
};

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_TILE_SWEEP_INL_H_
