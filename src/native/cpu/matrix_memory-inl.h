// What a kernel on a matrix unit packs of a task's keys and values, and the list of what a tile of queries attends.
// Included once per SIMD target.
#if defined(NATTEN_NATIVE_CPU_MATRIX_MEMORY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_MATRIX_MEMORY_INL_H_
#undef NATTEN_NATIVE_CPU_MATRIX_MEMORY_INL_H_
#else
#define NATTEN_NATIVE_CPU_MATRIX_MEMORY_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "hwy/highway.h"
#include "native/cpu/matrix_plan.h"
#include "native/cpu/matrix_unit.h"
#include "native/cpu/region-inl.h"
#include "native/cpu/scratch.h"
#include "native/cpu/target.h"
#include "native/cpu/tile_products-inl.h"
#include "native/cpu/tuning.h"

#if HWY_TARGET == HWY_AVX3  // to Highway, all targets with a matrix unit are
HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Row after row of float32 as bfloat16, in the pairs that products take: rounded to nearest, halves up. A NaN stays
/// one because those that come from bfloat16 have no low bits.
HWY_INLINE void store_pairs(TileVec first, TileVec second, std::uint32_t* to) {
  const hn::Rebind<std::uint32_t, TileTag> d32;
  const hn::Repartition<std::uint16_t, TileTag> d16;
  const auto half = hn::Set(d32, 0x8000u);
  const auto low = hn::ShiftRight<16>(hn::Add(hn::BitCast(d32, first), half));
  const auto high = hn::Add(hn::BitCast(d32, second), half);
  hn::Store(hn::BitCast(d32, hn::OddEven(hn::BitCast(d16, high), hn::BitCast(d16, low))), d32, to);
}

inline constexpr std::int64_t kTileSize = kMatrixTile * kMatrixTile;

/// Which of 16 queries attend each of 16 keys: a bit per query.
using MatrixBits = std::uint16_t;
using MatrixMask = std::array<MatrixBits, kMatrixTile>;

/// Neighbouring queries of the last axis, and the keys around their windows.
struct MatrixColumns {
  std::int64_t query;
  int count;
  Span keys;
  std::vector<MatrixMask> masks;  ///< of every 16 keys, whatever the queries of the other axes
};

/// Queries of the outer axes that are computed together, and the keys of their windows.
struct MatrixBand {
  Span queries[2], keys[2];
  std::vector<MatrixBits> masks[2];  ///< of every key of an axis
};

/// What products read in rows (keys, and values for gradients) is packed as it is, what they read in columns in pairs,
/// [place][channel][of pair], of two neighbouring rows of keys, or where windows are lines, of places 16 apart. So any
/// place can be the first of a tile of either, and rows of tiles are aligned. What is packed slides along the outermost
/// axis with several keys, as a ring of slabs: planes of keys, or pairs of rows where there is one plane.
class MatrixMemory {
 protected:
  /// A tensor over keys in rows or pairs, or sums over queries of float32.
  struct Packed {
    const Tensor* tensor;
    std::int64_t dim;
    std::int64_t pitch = 0;  ///< bytes from place to place
    char* memory = nullptr;
    std::vector<std::int64_t> offsets = {};  ///< of every 16 keys, or pair of them, of the tile at hand
  };

  MatrixMemory(const AttentionInputs& inputs, const Task& task, Wanted wanted, int whole_windows,
               std::vector<Packed> rows, Packed pairs, std::vector<Packed> sums)
      : inputs_(inputs),
        p_(inputs.problem),
        region_(task, wanted, whole_windows),
        group_(region_.group),
        part_(region_.part),
        heads_(p_.heads / p_.kv_heads),
        dim_(p_.head_dim),
        value_dim_(p_.value_dim),
        tile_(matrix_tile(p_)),
        rows_(std::move(rows)),
        paired_(std::move(pairs)),
        sums_over_queries_(std::move(sums)),
        rows_of_unit_(tile_.is_line ? 1 : 2) {}

  void plan_memory() {
    for (std::int64_t q = part_[2].queries.start; q < part_[2].queries.end; q += tile_.queries[2]) {
      columns_.push_back(columns_at(q));
    }
    places_ = size_of(part_[2].keys) + 2 * kMatrixTile;  // tiles may stick out
    // Odd numbers of cache lines spread what is read together over the sets of the cache.
    for (Packed& rows : rows_) rows.pitch = (steps_of(rows.dim) | 1) * 64;
    paired_.pitch = (columns_of(paired_.dim) | 1) * 64;
    for (Packed& sums : sums_over_queries_) sums.pitch = (columns_of(sums.dim) | 1) * 64;
    for (std::int64_t i = 0; i < std::max(kVectors, columns_of(std::max(dim_, value_dim_))); ++i) {
      tile_offsets_.push_back(i * kMatrixTile * 64);
      line_offsets_.push_back(i * 64);
    }
    slide_axis_ = slide_axis();
    units_of_slab_ = slide_axis_ == 0 ? unit_of(part_[1].keys.end - 1) + 1 : 1;
    capacity_ = 1;
    for_each_band(
        [&](const Span& q0s, const Span& q1s) { capacity_ = std::max(capacity_, size_of(slabs_of(q0s, q1s))); });
    units_ = size_of(region_.task.kv_heads) * capacity_ * units_of_slab_;
    raw_pitch_ = columns_of(paired_.dim) * kMatrixTile;
  }

  void take_memory(Scratch& scratch) {
    for (Packed& rows : rows_) rows.memory = scratch.take<char>(packed_rows() * places_ * rows.pitch);
    // What no query of a tile attends is summed elsewhere.
    for (Packed& sums : sums_over_queries_)
      sums.memory = scratch.take<char>((packed_rows() + 1) * places_ * sums.pitch);
    paired_.memory = scratch.take<char>(units_ * places_ * paired_.pitch);
    for (std::uint16_t*& raw : raw_) raw = scratch.take<std::uint16_t>(kMatrixTile * raw_pitch_);
    weights_ = scratch.take<char>(kMatrixTile * kWeightRow);
    pair_buffer_ = scratch.take<std::uint32_t>(kTileSize);
  }
  void clear_memory() const {
    // Weights are zero there.
    const std::int64_t packed = size_of(part_[2].keys) * paired_.pitch, row = places_ * paired_.pitch;
    for (std::int64_t u = 0; u < units_; ++u) std::memset(paired_.memory + u * row + packed, 0, row - packed);
    for (std::uint16_t* raw : raw_) std::fill_n(raw, kMatrixTile * raw_pitch_, std::uint16_t{0});
  }

  int slide_axis() const { return size_of(part_[0].keys) > 1 ? 0 : 1; }

  /// Calls visit(queries of axis 0, of axis 1) for all bands.
  template <class Visit>
  void for_each_band(Visit&& visit) const {
    const Span &q0s = part_[0].queries, &q1s = part_[1].queries;
    for (std::int64_t q0 = q0s.start; q0 < q0s.end; q0 += tile_.queries[0]) {
      for (std::int64_t q1 = q1s.start; q1 < q1s.end; q1 += tile_.queries[1]) {
        visit(Span{q0, std::min(q0 + tile_.queries[0], q0s.end)}, Span{q1, std::min(q1 + tile_.queries[1], q1s.end)});
      }
    }
  }

  /// Perhaps without keys, where the task needs none of its windows.
  MatrixBand band_of(const Span& q0s, const Span& q1s) const {
    MatrixBand band{{q0s, q1s}, {keys_of(0, q0s), keys_of(1, q1s)}, {}};
    const std::int64_t lanes_of[] = {tile_.queries[1] * tile_.queries[2], tile_.queries[2]};
    for (int a = 0; a < 2; ++a) {
      for (std::int64_t key = band.keys[a].start; key < band.keys[a].end; ++key) {
        MatrixBits bits = 0;
        for (std::int64_t lane = 0; lane < kMatrixTile; ++lane) {
          const std::int64_t query = band.queries[a].start + lane / lanes_of[a] % tile_.queries[a];
          bits |= (query < band.queries[a].end && contains(group_[a]->queries[query].keys, key) ? 1 : 0) << lane;
        }
        band.masks[a].push_back(bits);
      }
    }
    return band;
  }

  /// Packs what a band attends. False where what zero weights meet is not finite: they would make NaN of it.
  bool pack(const MatrixBand& band) {
    const Span slabs = slabs_of(band.queries[0], band.queries[1]);
    store_slabs(slabs.start);
    if (slabs.start < packed_.start || slabs.start > packed_.end) packed_ = {slabs.start, slabs.start};
    for (; packed_.end < slabs.end; ++packed_.end) {
      const std::int64_t k0 = slide_axis_ == 0 ? packed_.end : part_[0].keys.start;
      for (std::int64_t u = 0; u < units_of_slab_; ++u) pack_unit(k0, slide_axis_ == 0 ? u : packed_.end);
    }
    packed_.start = std::max(packed_.start, packed_.end - capacity_);
    return is_finite_;
  }

  /// Lists the keys around a tile's windows in pairs of 16, but those that no query attends.
  void list_pairs(const MatrixBand& band, const MatrixColumns& columns) {
    pairs_ = 0;
    const Span &k0s = band.keys[0], &k1s = band.keys[1];
    const auto tiles = static_cast<std::int64_t>(columns.masks.size());
    const std::int64_t place = columns.keys.start - part_[2].keys.start;
    const std::int64_t most = size_of(k0s) * (size_of(k1s) + 1) * (tiles + 1);
    if (static_cast<std::int64_t>(paired_.offsets.size()) < most) {
      paired_.offsets.resize(most);
      masks_.resize(2 * most);
      for (Packed& rows : rows_) rows.offsets.resize(2 * most);
      for (Packed& sums : sums_over_queries_) sums.offsets.resize(2 * most);
    }
    for (std::int64_t k0 = k0s.start; k0 < k0s.end; ++k0) {
      const MatrixBits plane = band.masks[0][k0 - k0s.start];
      for (std::int64_t u = unit_of(k1s.start); u <= unit_of(k1s.end - 1); ++u) {
        const std::int64_t unit = unit_index(k0, u), k1 = part_[1].keys.start + u * rows_of_unit_;
        for (std::int64_t tile = 0; tile < tiles; tile += tile_.is_line ? 2 : 1) {
          MatrixBits bits[2];
          std::int64_t keys[2], tile_of[2];
          for (int i = 0; i < 2; ++i) {
            const std::int64_t row = tile_.is_line ? 0 : i;
            tile_of[i] = tile_.is_line ? tile + i : tile;
            keys[i] = (unit * rows_of_unit_ + row) * places_ + place + tile_of[i] * kMatrixTile;
            const bool is_there = contains(k1s, k1 + row) && tile_of[i] < tiles;
            bits[i] = is_there ? plane & band.masks[1][k1 + row - k1s.start] : 0;
          }
          if (bits[0] == 0 && bits[1] == 0) continue;
          for (int i = 0; i < 2; ++i) {
            const bool is_used = bits[i] != 0;
            for (Packed& rows : rows_) {
              rows.offsets[2 * pairs_ + i] = keys[is_used ? i : 1 - i] * rows.pitch;  // the other may not be packed
            }
            for (Packed& sums : sums_over_queries_) {
              sums.offsets[2 * pairs_ + i] = (is_used ? keys[i] : packed_rows() * places_) * sums.pitch;
            }
            const hn::CappedTag<MatrixBits, kMatrixTile> d;
            const MatrixBits* mask = columns.masks[is_used ? tile_of[i] : 0].data();
            for (std::size_t key = 0; key < kMatrixTile; key += hn::Lanes(d)) {
              hn::StoreU(hn::And(hn::LoadU(d, mask + key), hn::Set(d, bits[i])), d,
                         masks_[2 * pairs_ + i].data() + key);
            }
          }
          paired_.offsets[pairs_++] = (unit * places_ + place + tile * kMatrixTile) * paired_.pitch;
        }
      }
    }
  }

  /// Calls visit(first lane, q0, q1) for every row of queries of a tile.
  template <class Visit>
  HWY_INLINE void for_each_row(const MatrixBand& band, Visit&& visit) const {
    for (std::int64_t q0 = band.queries[0].start; q0 < band.queries[0].end; ++q0) {
      for (std::int64_t q1 = band.queries[1].start; q1 < band.queries[1].end; ++q1) {
        const std::int64_t row = (q0 - band.queries[0].start) * tile_.queries[1] + q1 - band.queries[1].start;
        visit(row * tile_.queries[2], q0, q1);
      }
    }
  }

  HWY_INLINE hn::Mask<TileTag> mask_of(std::int64_t vector, std::int64_t key) const {
    return hn::LoadMaskBits(TileTag(), reinterpret_cast<const std::uint8_t*>(&masks_[vector][key]));
  }

  /// scores[vector][key][query] of the keys, or values, of some pairs: products with [channel / 2][query][channel % 2].
  void multiply_rows(int which, std::int64_t kv_head, std::int64_t first, std::int64_t count,
                     const std::uint16_t* queries, float* scores) const {
    const Packed& rows = rows_[which];
    multiply<false>(unit_, {rows.memory + head_units(kv_head) * rows_of_unit_ * places_ * rows.pitch,
                            rows.offsets.data() + 2 * first, line_offsets_.data(), rows.pitch,
                            reinterpret_cast<const char*>(queries), &kFirst, tile_offsets_.data(), 64, 2 * count, 1,
                            steps_of(rows.dim), scores, tile_offsets_.data(), 64});
  }
  /// sums[query][channel] (+)= the products of weights_ with some pairs.
  template <bool kAdd>
  void multiply_pairs(std::int64_t kv_head, std::int64_t first, std::int64_t count, float* sums) const {
    const std::int64_t columns = columns_of(paired_.dim);
    multiply<kAdd>(unit_,
                   {weights_, &kFirst, line_offsets_.data(), kWeightRow,
                    paired_.memory + head_units(kv_head) * places_ * paired_.pitch, line_offsets_.data(),
                    paired_.offsets.data() + first, paired_.pitch, 1, columns, count, sums, &kFirst, columns * 64});
  }
  /// Makes weights_ of a pair from pair_buffer_.
  HWY_INLINE void store_weights(std::int64_t pair) const {
    transpose_in<false>(reinterpret_cast<const float*>(pair_buffer_), kMatrixTile, kMatrixTile, 1.0f,
                        reinterpret_cast<float*>(weights_ + pair * 64), kWeightRow / 4);
  }
  static std::int64_t steps_of(std::int64_t dim) { return round_up(dim, kMatrixStep) / kMatrixStep; }
  static std::int64_t columns_of(std::int64_t dim) { return round_up(dim, kMatrixTile) / kMatrixTile; }

  /// Stores the sums of all slabs before one that are not stored yet. For tasks of one head.
  void store_slabs(std::int64_t end) {
    if (sums_over_queries_.empty()) return;
    for (; stored_ < end; ++stored_) {
      const bool is_packed = contains(packed_, stored_);
      for (std::int64_t u = 0; u < units_of_slab_; ++u) {
        const std::int64_t k0 = slide_axis_ == 0 ? stored_ : part_[0].keys.start, unit = slide_axis_ == 0 ? u : stored_;
        const std::int64_t first = part_[1].keys.start + unit * rows_of_unit_;
        if (!is_packed) clear_sums(unit_index(k0, unit));
        for (std::int64_t row = 0; row < rows_of_unit_; ++row) {
          if (!contains(part_[0].owned_keys, k0) || !contains(part_[1].owned_keys, first + row)) continue;
          store_sums(k0, first + row, (unit_index(k0, unit) * rows_of_unit_ + row) * places_);
        }
      }
    }
  }
  std::int64_t slabs_end() const { return slide_axis_ == 0 ? part_[0].keys.end : unit_of(part_[1].keys.end - 1) + 1; }
  std::int64_t slabs_start() const { return slide_axis_ == 0 ? part_[0].keys.start : 0; }

  /// Of a row of keys that the task owns; `place` is the row's first in all sums.
  virtual void store_sums(std::int64_t, std::int64_t, std::int64_t) {}
  virtual ~MatrixMemory() = default;

  const AttentionInputs& inputs_;
  const Problem& p_;
  const Region region_;
  const AxisGroup* const* const group_;
  const AxisPart* const part_;
  const std::int64_t heads_;  ///< query heads of the key head
  const std::int64_t dim_, value_dim_;
  const MatrixTile tile_;
  const MatrixUnit unit_ = matrix_unit();
  static constexpr std::int64_t kVectors = 2 * tuning::kMatrixChunk, kWeightRow = (tuning::kMatrixChunk + 1) * 64;
  static constexpr std::int64_t kFirst = 0;

  char* weights_;                                          ///< [query][key][of pair] of a chunk of pairs
  std::uint32_t* pair_buffer_;                             ///< of a pair, [key][query]
  std::vector<std::int64_t> tile_offsets_, line_offsets_;  ///< in bytes, of tiles of 16 lines and of lines
  std::vector<Packed> rows_;
  Packed paired_;
  std::vector<Packed> sums_over_queries_;
  std::vector<MatrixColumns> columns_;
  std::int64_t pairs_ = 0;  ///< of 16 keys around the tile at hand
  std::vector<MatrixMask> masks_;
  bool is_finite_ = true;
  std::int64_t stored_ = 0;  ///< slabs before it have their sums stored

 private:
  struct RawRows {
    const std::uint16_t* data;
    std::int64_t stride, count;
  };

  MatrixColumns columns_at(std::int64_t query) const {
    const Span queries{query, std::min(query + tile_.queries[2], part_[2].queries.end)};
    MatrixColumns columns{query, static_cast<int>(size_of(queries)), keys_of(2, queries), {}};
    for (std::int64_t key = columns.keys.start; key < columns.keys.end; key += kMatrixTile) {
      MatrixMask mask{};
      for (std::int64_t lane = 0; lane < kMatrixTile; ++lane) {
        const std::int64_t q = query + lane % tile_.queries[2];
        for (std::int64_t i = 0; i < kMatrixTile && q < queries.end; ++i) {
          mask[i] |= (contains(group_[2]->queries[q].keys, key + i) ? 1 : 0) << lane;
        }
      }
      columns.masks.push_back(mask);
    }
    return columns;
  }

  /// From the first to the last key of neighbouring queries, none of whose ends moves back.
  Span keys_of(int a, const Span& queries) const {
    const auto& all = group_[a]->queries;
    const Span& needed = part_[a].keys;
    return {std::max(all[queries.start].keys.start, needed.start), std::min(all[queries.end - 1].keys.end, needed.end)};
  }
  std::int64_t unit_of(std::int64_t k1) const { return (k1 - part_[1].keys.start) / rows_of_unit_; }
  Span slabs_of(const Span& q0s, const Span& q1s) const {
    if (slide_axis_ == 0) return keys_of(0, q0s);
    const Span keys = keys_of(1, q1s);
    return {unit_of(keys.start), unit_of(keys.end - 1) + 1};
  }
  std::int64_t head_units(std::int64_t kv_head) const {
    return (kv_head - region_.task.kv_heads.start) * capacity_ * units_of_slab_;
  }
  /// Of the first head.
  std::int64_t unit_index(std::int64_t k0, std::int64_t u) const {
    return slide_axis_ == 0 ? k0 % capacity_ * units_of_slab_ + u : u % capacity_;
  }

  /// At most 16 rows as they are, or copied so that zeros follow up to `padded` channels.
  RawRows raw_rows(int buffer, const TensorRows& rows, std::int64_t count, std::int64_t dim, std::int64_t padded) {
    const TensorRows run = rows.run(count);
    if (dim == padded && run.is_run()) {
      return {reinterpret_cast<const std::uint16_t*>(run.data), run.stride, count};
    }
    copy_rows(rows, count, dim, padded, raw_[buffer], padded);
    return {raw_[buffer], padded, count};
  }

  std::int64_t packed_rows() const { return units_ * rows_of_unit_; }

  void clear_sums(std::int64_t unit) {
    for (const Packed& sums : sums_over_queries_) {
      const std::int64_t size = rows_of_unit_ * places_ * sums.pitch;
      std::memset(sums.memory + unit * size, 0, size);
    }
  }

  /// Neighbouring heads of a token lie one after the other in memory.
  void pack_unit(std::int64_t k0, std::int64_t u) {
    const Span &k2s = part_[2].keys, &heads = region_.task.kv_heads;
    const std::int64_t k1 = part_[1].keys.start + u * rows_of_unit_, unit = unit_index(k0, u);
    clear_sums(unit);
    const auto count_at = [&](std::int64_t k2) { return std::clamp<std::int64_t>(k2s.end - k2, 0, kMatrixTile); };
    for (std::int64_t k2 = k2s.start; k2 < k2s.end; k2 += kMatrixTile) {
      const std::int64_t place = k2 - k2s.start;
      for (std::int64_t row = 0; row < rows_of_unit_ && k1 + row < part_[1].keys.end; ++row) {
        for (std::int64_t head = heads.start; head < heads.end; ++head) {
          const std::int64_t first = ((head_units(head) + unit) * rows_of_unit_ + row) * places_ + place;
          for (const Packed& rows : rows_) {
            auto* to = reinterpret_cast<std::uint16_t*>(rows.memory + first * rows.pitch);
            copy_rows(region_.key_rows(*rows.tensor, head, k0, k1 + row, k2), count_at(k2), rows.dim,
                      round_up(rows.dim, kMatrixStep), to, rows.pitch / 2);
          }
        }
      }
      for (std::int64_t head = heads.start; head < heads.end; ++head) {
        const std::int64_t dim = paired_.dim, padded = raw_pitch_;
        const bool has_next = tile_.is_line || k1 + 1 < part_[1].keys.end;
        const std::int64_t next2 = tile_.is_line ? k2 + kMatrixTile : k2;
        const RawRows first =
            raw_rows(0, region_.key_rows(*paired_.tensor, head, k0, k1, k2), count_at(k2), dim, padded);
        RawRows second{nullptr, 0, has_next ? count_at(next2) : 0};
        if (second.count > 0) {
          second = raw_rows(1, region_.key_rows(*paired_.tensor, head, k0, tile_.is_line ? k1 : k1 + 1, next2),
                            second.count, dim, padded);
        }
        pack_pairs(first, second, paired_.memory + ((head_units(head) + unit) * places_ + place) * paired_.pitch);
      }
    }
  }

  void pack_pairs(const RawRows& first, const RawRows& second, char* to) {
    const hn::Rebind<std::uint32_t, TileTag> d32;
    const hn::Rebind<std::uint16_t, TileTag> d16;
    // The exponent of what is not finite carries over.
    const auto exponent = hn::Set(d32, 0x7f807f80u), one = hn::Set(d32, 0x00800080u);
    auto carry = hn::Zero(d32);
    for (std::int64_t i = 0; i < first.count; ++i, to += paired_.pitch) {
      for (std::int64_t t = 0; t < raw_pitch_ / kMatrixTile; ++t) {
        auto pair = hn::PromoteTo(d32, hn::LoadU(d16, first.data + i * first.stride + t * kMatrixTile));
        if (i < second.count) {
          const auto next = hn::PromoteTo(d32, hn::LoadU(d16, second.data + i * second.stride + t * kMatrixTile));
          pair = hn::Or(pair, hn::ShiftLeft<16>(next));
        }
        carry = hn::Or(carry, hn::Add(hn::And(pair, exponent), one));
        hn::Store(pair, d32, reinterpret_cast<std::uint32_t*>(to + t * 64));
      }
    }
    is_finite_ &= hn::AllTrue(d32, hn::Eq(hn::And(carry, hn::Set(d32, 0x80008000u)), hn::Zero(d32)));
  }

  const std::int64_t rows_of_unit_;  ///< rows of keys that are packed together
  int slide_axis_;
  std::int64_t units_of_slab_, capacity_, units_;  ///< capacity: slabs of a head
  std::int64_t places_;                            ///< of a packed row
  std::int64_t raw_pitch_;                         ///< halfs of a row that is paired
  Span packed_{0, 0};                              ///< slabs
  std::uint16_t* raw_[2];
};

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET == HWY_AVX3
#endif  // NATTEN_NATIVE_CPU_MATRIX_MEMORY_INL_H_
