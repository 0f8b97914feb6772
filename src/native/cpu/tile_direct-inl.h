// Products of queries with keys that are copied, not transposed: lanes are channels, a tree of additions makes lanes of
// queries of the sums. Included once per SIMD target.
#if defined(NATTEN_NATIVE_CPU_TILE_DIRECT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_TILE_DIRECT_INL_H_
#undef NATTEN_NATIVE_CPU_TILE_DIRECT_INL_H_
#else
#define NATTEN_NATIVE_CPU_TILE_DIRECT_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "native/cpu/tile_products-inl.h"
#include "native/cpu/tile_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Vectors of channels at a time: sums or queries that stay in registers.
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3
inline constexpr int kMostDirectVecs = 4;
#else
inline constexpr int kMostDirectVecs = 8;
#endif
/// Queries whose values are summed together: enough sums to hide the latency of a multiplication.
constexpr int direct_queries(int vecs) {
  const int queries = kMostDirectVecs / vecs < 4 ? kMostDirectVecs / vecs : 4;
  return queries < kLanes ? queries : kLanes;
}

/// The windows of the queries of a tile along the last axis. Lanes without a query repeat the first.
struct DirectTile {
  std::int64_t query;  ///< index of the first
  int count;
  std::int64_t slots;          ///< keys of the longest window
  bool is_ragged;              ///< some windows are shorter
  std::int64_t place, places;  ///< of all windows together
  std::int64_t key[kLanes];    ///< the first, from `place` on
  std::int64_t keys[kLanes];   ///< how many
  std::int32_t bias[kLanes];   ///< entry of the first key
};

/// Rows of a few tensors that will be read soon, one per lane.
struct RowsAhead {
  static constexpr int kMost = 3;
  int tensors;
  const char* rows[kMost];
  std::int64_t stride[kMost], bytes[kMost];

  void add(const TensorRows& tensor_rows, std::int64_t dim) {
    const TensorRows run = tensor_rows.run(kLanes);
    if (!run.is_run()) return;
    const std::int64_t size = element_size(run.type);
    rows[tensors] = run.data;
    stride[tensors] = run.stride * size;
    bytes[tensors++] = dim * size;
  }
  HWY_INLINE void fetch(int lane) const {
    for (int t = 0; t < tensors; ++t) {
      const char* row = rows[t] + lane * stride[t];
      for (std::int64_t b = 0; b < bytes[t]; b += 64) __builtin_prefetch(row + b, 0, 2);
    }
  }
};

/// partial[slot][lane] (+)= lane by lane products of kVecs vectors of a query and a key; both [row][pitch], keys from
/// the tile's first place on.
template <int kVecs, bool kAdd>
void multiply_channels(const DirectTile& tile, const float* queries, const float* keys, std::int64_t pitch,
                       const RowsAhead& ahead, float* partial) {
  const TileTag d;
  for (int lane = 0; lane < kLanes; ++lane) {
    ahead.fetch(lane);
    TileVec query[kVecs];
    NATTEN_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      query[v] = hn::Load(d, queries + lane * pitch + v * kLanes);
      keep_in_register(query[v]);
    }
    const float* key = keys + tile.key[lane] * pitch;
    float* to = partial + lane * kLanes;
    for (std::int64_t s = 0; s < tile.keys[lane]; ++s, key += pitch, to += kLanes * kLanes) {
      TileVec sum = kAdd ? hn::Load(d, to) : hn::Zero(d);
      NATTEN_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        const auto x = hn::Load(d, key + v * kLanes);
        sum = v == 0 && !kAdd ? hn::Mul(query[v], x) : hn::MulAdd(query[v], x, sum);
      }
      hn::Store(sum, d, to);
    }
  }
}

/// What `join` (a sum, a maximum) makes of the lanes of kLanes vectors, as the lanes of one.
template <class Join>
HWY_INLINE TileVec fold_lanes(const float* vectors, [[maybe_unused]] const Join& join) {
  const TileTag d;
#if HWY_TARGET == HWY_SCALAR
  return hn::Load(d, vectors);
#else
  const hn::Repartition<double, TileTag> wide;
  // Of four vectors one: in every block of four lanes, those of the same block of each.
  TileVec fours[kLanes / 4];
  NATTEN_UNROLL
  for (int i = 0; i < kLanes / 4; ++i) {
    TileVec v[4];
    NATTEN_UNROLL
    for (int k = 0; k < 4; ++k) v[k] = hn::Load(d, vectors + (4 * i + k) * kLanes);
    const auto pair0 = join(hn::InterleaveLower(d, v[0], v[1]), hn::InterleaveUpper(d, v[0], v[1]));
    const auto pair1 = join(hn::InterleaveLower(d, v[2], v[3]), hn::InterleaveUpper(d, v[2], v[3]));
    const auto wide0 = hn::BitCast(wide, pair0), wide1 = hn::BitCast(wide, pair1);
    fours[i] = join(hn::BitCast(d, hn::InterleaveLower(wide, wide0, wide1)),
                    hn::BitCast(d, hn::InterleaveUpper(wide, wide0, wide1)));
  }
  if constexpr (kLanes == 4) {
    return fours[0];
  } else {
    // Of two vectors, whose even and odd blocks are joined, those of the first and those of the second in turns.
    const auto turns = [&](TileVec a, TileVec b) {
      return join(hn::OddEvenBlocks(b, a), hn::SwapAdjacentBlocks(hn::OddEvenBlocks(a, b)));
    };
    if constexpr (kLanes == 8) {
      return turns(fours[0], fours[1]);
    } else {
      const auto halves = [&](TileVec a, TileVec b) {
        return join(hn::ConcatLowerLower(d, b, a), hn::ConcatUpperUpper(d, b, a));
      };
      return turns(halves(fours[0], fours[2]), halves(fours[1], fours[3]));
    }
  }
#endif
}

HWY_INLINE TileVec sums_of_lanes(const float* vectors) {
  return fold_lanes(
      vectors, [](TileVec a, TileVec b) __attribute__((always_inline)) { return hn::Add(a, b); });
}

/// sums[query] = factor * sum of probability * value, for kCount consecutive queries of a tile. Values are
/// [place][pitch].
template <int kVecs, int kCount>
void add_direct_values(const DirectTile& tile, int first, const float* values, const float* probabilities,
                       const float* factors, float* to, std::int64_t pitch) {
  const TileTag d;
  TileVec sums[kCount][kVecs];
  NATTEN_UNROLL
  for (int q = 0; q < kCount; ++q) {
    NATTEN_UNROLL
    for (int v = 0; v < kVecs; ++v) sums[q][v] = hn::Zero(d);
  }
  std::int64_t common = tile.keys[first];
  for (int q = 1; q < kCount; ++q) common = common < tile.keys[first + q] ? common : tile.keys[first + q];
  const float* value[kCount];
  NATTEN_UNROLL
  for (int q = 0; q < kCount; ++q) value[q] = values + tile.key[first + q] * pitch;
  const auto add = [&](int q, std::int64_t s) __attribute__((always_inline)) {
    const TileVec weight = hn::Set(d, probabilities[s * kLanes + first + q]);
    NATTEN_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      sums[q][v] = hn::MulAdd(weight, hn::Load(d, value[q] + v * kLanes), sums[q][v]);
    }
    value[q] += pitch;
  };
  for (std::int64_t s = 0; s < common; ++s) {
    NATTEN_UNROLL
    for (int q = 0; q < kCount; ++q) add(q, s);
  }
  if (tile.is_ragged) {
    NATTEN_UNROLL
    for (int q = 0; q < kCount; ++q) {
      for (std::int64_t s = common; s < tile.keys[first + q]; ++s) add(q, s);
    }
  }
  NATTEN_UNROLL
  for (int q = 0; q < kCount; ++q) {
    const auto factor = hn::Set(d, factors[first + q]);
    NATTEN_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      hn::Store(hn::Mul(factor, sums[q][v]), d, to + (first + q) * pitch + v * kLanes);
    }
  }
}

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_TILE_DIRECT_INL_H_
