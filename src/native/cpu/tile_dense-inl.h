// The product of dense blocks, in registers: one operand is broadcast, the other is read in vectors. Included once per
// SIMD target.
#if defined(NATTEN_NATIVE_CPU_TILE_DENSE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_TILE_DENSE_INL_H_
#undef NATTEN_NATIVE_CPU_TILE_DENSE_INL_H_
#else
#define NATTEN_NATIVE_CPU_TILE_DENSE_INL_H_
#endif

#include <array>
#include <cstdint>
#include <utility>

#include "hwy/highway.h"
#include "native/cpu/tile_products-inl.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline constexpr int kMostVecs = 2;
constexpr int most_dense_rows(int vecs) {
  return kAccumulators / vecs < 4 ? 4 : kAccumulators / vecs;
}

/// sums[row][vector] (+)= sum over k of a[row][k] * b[k][vector]
struct DenseCall {
  const float* a;
  std::int64_t a_row, a_step;  ///< floats from row to row, and from one k to the next
  const float* b[kMostVecs];   ///< of every vector
  std::int64_t b_step;
  std::int64_t count;  ///< of k
  float* sums[kMostVecs];
  std::int64_t sums_row;
  int segments = 1;  ///< runs of `count` k, each so far from the one before:
  std::int64_t a_segment = 0, b_segment = 0;
};

template <int kRows, int kVecs, bool kAdd>
void multiply_dense(const DenseCall& call) {
  const TileTag d;
  TileVec sums[kRows][kVecs];
  NATTEN_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    const float* from = call.sums[v];
    NATTEN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if constexpr (kAdd) {
        sums[r][v] = hn::Load(d, from);
        from += call.sums_row;
      } else {
        sums[r][v] = hn::Zero(d);
      }
    }
  }
  const std::int64_t a_row = call.a_row, a_step = call.a_step, b_step = call.b_step;
  for (int segment = 0; segment < call.segments; ++segment) {
    // A pointer per four rows, whose addresses then are pointer + {0, 1, 2, 3} * a_row. One per row, which GCC would
    // make, does not fit the registers.
    const float* a[(kRows + 3) / 4];
    NATTEN_UNROLL
    for (int r = 0; r < kRows; r += 4) a[r / 4] = call.a + segment * call.a_segment + r * a_row;
    const float* b[kVecs];
    NATTEN_UNROLL
    for (int v = 0; v < kVecs; ++v) b[v] = call.b[v] + segment * call.b_segment;
    for (std::int64_t k = 0; k < call.count; ++k) {
      TileVec operand[kVecs];
      NATTEN_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        operand[v] = hn::Load(d, b[v]);
        keep_in_register(operand[v]);
        b[v] += b_step;
      }
      NATTEN_UNROLL
      for (int r = 0; r < kRows; ++r) {
        if (r % 4 == 0) keep_pointer(a[r / 4]);
        TileVec factor = hn::Set(d, a[r / 4][r % 4 * a_row]);
        if constexpr (kVecs > 1) keep_in_register(factor);
        NATTEN_UNROLL
        for (int v = 0; v < kVecs; ++v) sums[r][v] = hn::MulAdd(factor, operand[v], sums[r][v]);
        if (r % 4 == 3 || r + 1 == kRows) a[r / 4] += a_step;
      }
    }
  }
  NATTEN_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    float* to = call.sums[v];
    NATTEN_UNROLL
    for (int r = 0; r < kRows; ++r, to += call.sums_row) hn::Store(sums[r][v], d, to);
  }
}

using DenseFunction = void (*)(const DenseCall&);

template <int kVecs, bool kAdd, int... kRow>
constexpr std::array<DenseFunction, sizeof...(kRow)> dense_rows(std::integer_sequence<int, kRow...>) {
  return {{multiply_dense<kRow + 1, kVecs, kAdd>...}};
}
/// By their rows - 1.
template <int kVecs, bool kAdd>
inline constexpr auto kDense = dense_rows<kVecs, kAdd>(std::make_integer_sequence<int, most_dense_rows(kVecs)>());

/// Any number of rows.
template <bool kAdd>
HWY_INLINE void multiply_dense(const DenseCall& call, int rows, int vecs) {
  for_each_piece(
      rows, most_dense_rows(vecs), [&](int row, int count) __attribute__((always_inline)) {
        DenseCall piece = call;
        piece.a += row * call.a_row;
        for (int v = 0; v < vecs; ++v) piece.sums[v] += row * call.sums_row;
        (vecs == 1 ? kDense<1, kAdd>[count - 1] : kDense<2, kAdd>[count - 1])(piece);
      });
}

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_TILE_DENSE_INL_H_
