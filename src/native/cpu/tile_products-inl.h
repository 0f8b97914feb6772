// The three products of "shift" on one tile of queries, of which the forward pass has the first, and the transposes
// around them. Lanes are queries of a tile in the first two, channels in the third. Included once per SIMD target.
#if defined(NATTEN_NATIVE_CPU_TILE_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_TILE_PRODUCTS_INL_H_
#undef NATTEN_NATIVE_CPU_TILE_PRODUCTS_INL_H_
#else
#define NATTEN_NATIVE_CPU_TILE_PRODUCTS_INL_H_
#endif

#include <array>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#undef NATTEN_UNROLL
#define NATTEN_UNROLL _Pragma("GCC unroll 32")

#if HWY_TARGET == HWY_SCALAR
using TileTag = hn::CappedTag<float, 1>;
#else
using TileTag = hn::CappedTag<float, 16>;
#endif
using TileVec = hn::Vec<TileTag>;
using TileIndices = decltype(hn::SetTableIndices(TileTag(), static_cast<const std::int32_t*>(nullptr)));
inline constexpr int kLanes = hn::MaxLanes(TileTag());

// Accumulators that fit the registers next to their operands.
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
inline constexpr int kAccumulators = 4, kMostSlots = 2, kMostKeys = 2;
#elif HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3
inline constexpr int kAccumulators = 12, kMostSlots = 4, kMostKeys = 6;
#elif HWY_ARCH_ARM  // multiplications cannot take an operand from memory: from 24 on GCC 12 spills
inline constexpr int kAccumulators = 21, kMostSlots = 7, kMostKeys = 10;
#else
inline constexpr int kAccumulators = 28, kMostSlots = 7, kMostKeys = 13;
#endif
inline constexpr int kMostRows = kAccumulators < 9 ? kAccumulators : 9;
constexpr int most_rows(int slots) {
  return kAccumulators / slots < kMostRows ? kAccumulators / slots : kMostRows;
}

/// GCC would fold a load that several multiplications share into each of them.
HWY_INLINE void keep_in_register(TileVec& v) {
#if HWY_COMPILER_GCC_ACTUAL && HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
  asm("" : "+v"(v.raw));
#elif HWY_COMPILER_GCC_ACTUAL && HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2
  asm("" : "+x"(v.raw));
#else
  (void)v;
#endif
}

/// GCC would derive pointers from each other and run out of registers for them.
HWY_INLINE void keep_pointer(const float*& pointer) {
#if HWY_COMPILER_GCC_ACTUAL
  asm("" : "+r"(pointer));
#else
  (void)pointer;
#endif
}

/// Keys of one slot for all queries of a tile. `from` is the first query's key.
template <bool kShift>
HWY_INLINE TileVec load_keys(const float* from, TileIndices indices) {
  const TileTag d;
  TileVec keys = hn::LoadU(d, from);
  if constexpr (!kShift) keys = hn::TableLookupLanes(keys, indices);
  keep_in_register(keys);
  return keys;
}

// The keys of a few slots stay in registers while the rows of queries pass by: sums, keys and one row of queries fit
// the registers.
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
inline constexpr int kScoreRegisters = 8, kMostScoreRows = 2, kMostScoreSlots = 2;
#elif HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3
inline constexpr int kScoreRegisters = 16, kMostScoreRows = 6, kMostScoreSlots = 5;
#elif HWY_ARCH_ARM
// GCC keeps only about 21 sums in the registers of NEON.
inline constexpr int kScoreRegisters = 26, kMostScoreRows = 9, kMostScoreSlots = 7;
#else
inline constexpr int kScoreRegisters = 32, kMostScoreRows = 9, kMostScoreSlots = 7;
#endif
constexpr int most_score_slots(int rows) {
  const int slots = (kScoreRegisters - 1) / (rows + 1);
  return slots < kMostScoreSlots ? slots : kMostScoreSlots;
}

/// Operands of one call: rows of queries, and some consecutive slots of one row of keys.
struct ScoreCall {
  const float* keys;  ///< transposed [channel][pitch], at the first slot of the first query
  std::int64_t pitch;
  std::int64_t channels;
  const std::int32_t* offsets;  ///< Tile::offset
  const float* const* queries;  ///< of every row, transposed [channel][lane]
  float* const* scores;         ///< of every row, [slot][lane]
  std::int64_t slot;            ///< the first; an offset in `keys` and `scores`
};

/// scores[row][slot] = sum over channels of query * key
template <int kRows, int kSlots, bool kShift>
void multiply_scores(const ScoreCall& call) {
  const TileTag d;
  const TileIndices indices = hn::SetTableIndices(d, call.offsets);
  TileVec sums[kRows][kSlots];
  const float* queries[kRows];
  NATTEN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    queries[r] = call.queries[r];
    NATTEN_UNROLL
    for (int s = 0; s < kSlots; ++s) sums[r][s] = hn::Zero(d);
  }
  const float* keys = call.keys + call.slot;
  for (std::int64_t c = 0; c < call.channels; ++c, keys += call.pitch) {
    TileVec key[kSlots];
    NATTEN_UNROLL
    for (int s = 0; s < kSlots; ++s) key[s] = load_keys<kShift>(keys + s, indices);
    NATTEN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      TileVec query = hn::Load(d, queries[r] + c * kLanes);
      if constexpr (kSlots > 1) keep_in_register(query);
      NATTEN_UNROLL
      for (int s = 0; s < kSlots; ++s) sums[r][s] = hn::MulAdd(query, key[s], sums[r][s]);
    }
  }
  NATTEN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    float* scores = call.scores[r] + call.slot * kLanes;
    NATTEN_UNROLL
    for (int s = 0; s < kSlots; ++s) hn::Store(sums[r][s], d, scores + s * kLanes);
  }
}

// multiply_scores by its sizes: [rows - 1][slots - 1][is_shift].
using ScoreFunction = void (*)(const ScoreCall&);
using ScoreTable = std::array<std::array<ScoreFunction, 2>, kMostScoreSlots>;

template <int kRows, int... kSlot>
constexpr ScoreTable score_slots(std::integer_sequence<int, kSlot...>) {
  return {{{{multiply_scores<kRows, kSlot + 1, false>, multiply_scores<kRows, kSlot + 1, true>}}...}};
}
template <int... kRow>
constexpr std::array<ScoreTable, sizeof...(kRow)> score_rows(std::integer_sequence<int, kRow...>) {
  return {{score_slots<kRow + 1>(std::make_integer_sequence<int, most_score_slots(kRow + 1)>())...}};
}
inline constexpr auto kMultiplyScores = score_rows(std::make_integer_sequence<int, kMostScoreRows>());

/// Operands of add_keys_tile.
struct TileCall {
  const float* keys;  ///< transposed [channel][pitch], at the first slot of the first query
  std::int64_t pitch;
  std::int64_t channels;
  const std::int32_t* offsets;  ///< Tile::offset
  float* const* queries;        ///< of every row, transposed [channel][lane]
  float* scores;                ///< [row][slot][lane], at the first slot
  std::int64_t score_row;       ///< floats from row to row of `scores`
};

/// queries[row] += sum over slots of scores[row][slot] * key
template <int kRows, int kSlots, bool kShift>
void add_keys_tile(const TileCall& call) {
  const TileTag d;
  const TileIndices indices = hn::SetTableIndices(d, call.offsets);
  TileVec scores[kRows][kSlots];
  NATTEN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    NATTEN_UNROLL
    for (int s = 0; s < kSlots; ++s) scores[r][s] = hn::Load(d, call.scores + r * call.score_row + s * kLanes);
  }
  float* queries[kRows];
  NATTEN_UNROLL
  for (int r = 0; r < kRows; ++r) queries[r] = call.queries[r];
  const float* keys = call.keys;
  for (std::int64_t c = 0; c < call.channels; ++c, keys += call.pitch) {
    TileVec sums[kRows];
    NATTEN_UNROLL
    for (int r = 0; r < kRows; ++r) sums[r] = hn::Load(d, queries[r] + c * kLanes);
    NATTEN_UNROLL
    for (int s = 0; s < kSlots; ++s) {
      const TileVec key = load_keys<kShift>(keys + s, indices);
      NATTEN_UNROLL
      for (int r = 0; r < kRows; ++r) sums[r] = hn::MulAdd(scores[r][s], key, sums[r]);
    }
    NATTEN_UNROLL
    for (int r = 0; r < kRows; ++r) hn::Store(sums[r], d, queries[r] + c * kLanes);
  }
}

/// Operands of add_queries_tile.
struct KeysCall {
  const float* scores;  ///< [row][slot][lane], at the first slot
  std::int64_t score_row;
  const float* const* queries;  ///< of every row, [query][channel pitch]
  std::int64_t channel;         ///< the first of `queries`, which `keys` already points to
  std::int64_t rows;
  float* keys;  ///< [place][channel pitch], at the first query's first slot
  std::int64_t pitch;
  const std::int32_t* offsets;  ///< Tile::offset
  int count;                    ///< queries
};

/// keys[offset + slot] += scores[row][slot] * query, summed over rows and queries; kVecs vectors of channels. The keys
/// of the current query stay in registers and move on with its window.
template <int kSlots, int kVecs>
void add_queries_tile(const KeysCall& call) {
  const TileTag d;
  TileVec sums[kSlots][kVecs];
  float* first = call.keys;
  NATTEN_UNROLL
  for (int s = 0; s < kSlots; ++s) {
    NATTEN_UNROLL
    for (int v = 0; v < kVecs; ++v) sums[s][v] = hn::Load(d, first + s * call.pitch + v * kLanes);
  }
  int offset = 0;
  for (int q = 0; q < call.count; ++q) {
    for (; offset < call.offsets[q]; ++offset, first += call.pitch) {
      NATTEN_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        hn::Store(sums[0][v], d, first + v * kLanes);
        NATTEN_UNROLL
        for (int s = 0; s + 1 < kSlots; ++s) sums[s][v] = sums[s + 1][v];
        sums[kSlots - 1][v] = hn::Load(d, first + kSlots * call.pitch + v * kLanes);
      }
    }
    const float* scores = call.scores + q;
    for (std::int64_t r = 0; r < call.rows; ++r, scores += call.score_row) {
      TileVec query[kVecs];
      NATTEN_UNROLL
      for (int v = 0; v < kVecs; ++v)
        query[v] = hn::Load(d, call.queries[r] + q * call.pitch + call.channel + v * kLanes);
      NATTEN_UNROLL
      for (int s = 0; s < kSlots; ++s) {
        TileVec score = hn::Set(d, scores[s * kLanes]);
        if constexpr (kVecs > 1) keep_in_register(score);
        NATTEN_UNROLL
        for (int v = 0; v < kVecs; ++v) sums[s][v] = hn::MulAdd(score, query[v], sums[s][v]);
      }
    }
  }
  NATTEN_UNROLL
  for (int s = 0; s < kSlots; ++s) {
    NATTEN_UNROLL
    for (int v = 0; v < kVecs; ++v) hn::Store(sums[s][v], d, first + s * call.pitch + v * kLanes);
  }
}

// The functions above by their sizes: [slots - 1][rows - 1][is_shift], [slots - 1][vectors - 1].
using TileFunction = void (*)(const TileCall&);
using KeysFunction = void (*)(const KeysCall&);
using RowTable = std::array<std::array<TileFunction, 2>, kMostRows>;

template <int kSlots, int... kRow>
constexpr RowTable add_keys_rows(std::integer_sequence<int, kRow...>) {
  return {{{{add_keys_tile<kRow + 1, kSlots, false>, add_keys_tile<kRow + 1, kSlots, true>}}...}};
}
template <int... kSlot>
constexpr std::array<RowTable, sizeof...(kSlot)> add_keys_slots(std::integer_sequence<int, kSlot...>) {
  return {{add_keys_rows<kSlot + 1>(std::make_integer_sequence<int, most_rows(kSlot + 1)>())...}};
}
template <int... kSlot>
constexpr std::array<std::array<KeysFunction, 2>, sizeof...(kSlot)> add_queries_slots(
    std::integer_sequence<int, kSlot...>) {
  return {{{{add_queries_tile<kSlot + 1, 1>, add_queries_tile<kSlot + 1, 2>}}...}};
}
inline constexpr auto kAddKeys = add_keys_slots(std::make_integer_sequence<int, kMostSlots>());
inline constexpr auto kAddQueries = add_queries_slots(std::make_integer_sequence<int, kMostKeys>());

constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// Calls visit(begin, size) for nearly equal pieces of `count`, each at most `most`.
template <class Visit>
HWY_INLINE void for_each_piece(int count, int most, Visit&& visit) {
  if (count <= most) {
    if (count > 0) visit(0, count);
    return;
  }
  const unsigned pieces = static_cast<unsigned>(count + most - 1) / static_cast<unsigned>(most);
  const int least = static_cast<int>(static_cast<unsigned>(count) / pieces);
  int longer = count - least * static_cast<int>(pieces);
  for (int begin = 0; begin < count;) {
    const int size = least + (longer-- > 0 ? 1 : 0);
    visit(begin, size);
    begin += size;
  }
}

/// Calls visit(integral_constant of vectors, first channel) for whole vectors: kMost of them while there are as many,
/// then half as many.
template <int kMost, class Visit>
HWY_INLINE void for_each_vectors(std::int64_t width, Visit&& visit, std::int64_t channel = 0) {
  for (; channel + kMost * kLanes <= width; channel += kMost * kLanes) {
    visit(std::integral_constant<int, kMost>(), channel);
  }
  if constexpr (kMost > 1) for_each_vectors<kMost / 2>(width, visit, channel);
}

/// Any number of slots, of at most kMostScoreRows rows.
HWY_INLINE void multiply_scores(ScoreCall call, int rows, int slots, bool is_shift) {
  for_each_piece(slots, most_score_slots(rows), [&](int slot, int count) {
    call.slot = slot;
    kMultiplyScores[rows - 1][count - 1][is_shift](call);
  });
}

#if HWY_TARGET != HWY_SCALAR
/// Four channels of kLanes rows, as kLanes / 4 blocks of 4: block b of vector i is row 4 b + i.
template <class D>
HWY_INLINE hn::Vec<D> load_blocks(D d, const float* from, std::int64_t stride) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return hn::LoadU(d, from);
  } else {
    const hn::Half<D> half;
    constexpr int kHalf = hn::MaxLanes(half);
    return hn::Combine(d, load_blocks(half, from + kHalf * stride, stride), load_blocks(half, from, stride));
  }
}

template <class D>
HWY_INLINE void store_blocks(D d, hn::Vec<D> value, float* to, std::int64_t stride) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    hn::StoreU(value, d, to);
  } else {
    const hn::Half<D> half;
    constexpr int kHalf = hn::MaxLanes(half);
    store_blocks(half, hn::LowerHalf(half, value), to, stride);
    store_blocks(half, hn::UpperHalf(half, value), to + kHalf * stride, stride);
  }
}

/// Transposes every 4x4 block of four vectors.
HWY_INLINE void transpose_blocks(TileVec (&v)[4]) {
  const TileTag d;
  const hn::Repartition<double, TileTag> wide;
  const auto low01 = hn::BitCast(wide, hn::InterleaveLower(d, v[0], v[1]));
  const auto high01 = hn::BitCast(wide, hn::InterleaveUpper(d, v[0], v[1]));
  const auto low23 = hn::BitCast(wide, hn::InterleaveLower(d, v[2], v[3]));
  const auto high23 = hn::BitCast(wide, hn::InterleaveUpper(d, v[2], v[3]));
  v[0] = hn::BitCast(d, hn::InterleaveLower(wide, low01, low23));
  v[1] = hn::BitCast(d, hn::InterleaveUpper(wide, low01, low23));
  v[2] = hn::BitCast(d, hn::InterleaveLower(wide, high01, high23));
  v[3] = hn::BitCast(d, hn::InterleaveUpper(wide, high01, high23));
}
#endif

/// to[channel * pitch + lane] = factor * from[lane * stride + channel]; both hold a multiple of 4 channels. Unscaled,
/// the bits are copied, whatever they mean.
template <bool kScaled = true>
HWY_INLINE void transpose_in(const float* from, std::int64_t stride, std::int64_t channels, float factor, float* to,
                             std::int64_t pitch) {
  const TileTag d;
  const auto scale = hn::Set(d, factor);
  const auto scaled = [&](TileVec v) __attribute__((always_inline)) {
    return kScaled ? hn::Mul(scale, v) : v;
  };
#if HWY_TARGET == HWY_SCALAR
  (void)stride;
  for (std::int64_t c = 0; c < channels; ++c) hn::Store(scaled(hn::Load(d, from + c)), d, to + c * pitch);
#else
  for (std::int64_t c = 0; c < channels; c += 4) {
    TileVec v[4];
    NATTEN_UNROLL
    for (int i = 0; i < 4; ++i) v[i] = load_blocks(d, from + i * stride + c, stride);
    transpose_blocks(v);
    NATTEN_UNROLL
    for (int i = 0; i < 4; ++i) hn::Store(scaled(v[i]), d, to + (c + i) * pitch);
  }
#endif
}

/// to[lane * stride + channel] = factor * from[channel][lane]; both hold a multiple of 4 channels.
HWY_INLINE void transpose_out(const float* from, std::int64_t channels, float factor, float* to, std::int64_t stride) {
  const TileTag d;
  const auto scale = hn::Set(d, factor);
#if HWY_TARGET == HWY_SCALAR
  (void)stride;
  for (std::int64_t c = 0; c < channels; ++c) hn::Store(hn::Mul(scale, hn::Load(d, from + c)), d, to + c);
#else
  for (std::int64_t c = 0; c < channels; c += 4) {
    TileVec v[4];
    NATTEN_UNROLL
    for (int i = 0; i < 4; ++i) v[i] = hn::Mul(scale, hn::Load(d, from + (c + i) * kLanes));
    transpose_blocks(v);
    NATTEN_UNROLL
    for (int i = 0; i < 4; ++i) store_blocks(d, v[i], to + i * stride + c, stride);
  }
#endif
}

/// row *= factor, whole vectors
HWY_INLINE void scale_row(float* row, std::int64_t count, float factor) {
  const TileTag d;
  const auto scale = hn::Set(d, factor);
  for (std::int64_t c = 0; c < count; c += kLanes) hn::Store(hn::Mul(scale, hn::Load(d, row + c)), d, row + c);
}

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_TILE_PRODUCTS_INL_H_
