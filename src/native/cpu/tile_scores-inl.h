// Scores of a tile of queries for the forward pass: lanes are queries, keys are packed transposed. Included once per
// SIMD target.
#if defined(NATTEN_NATIVE_CPU_TILE_SCORES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_TILE_SCORES_INL_H_
#undef NATTEN_NATIVE_CPU_TILE_SCORES_INL_H_
#else
#define NATTEN_NATIVE_CPU_TILE_SCORES_INL_H_
#endif

#include <array>
#include <cstdint>
#include <utility>

#include "hwy/highway.h"
#include "native/cpu/tile_products-inl.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

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

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_TILE_SCORES_INL_H_
