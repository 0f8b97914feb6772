// CUDA C++ as NVRTC compiles it, on the CPU: what the kernels' prelude uses. Comes before the generated source. Built
// on the stand-in for Metal's library, which has the same threads, barriers and simdgroups (warps) under other names.
#pragma once

#include "metal_stdlib.h"

// Words of Metal that are names in CUDA.
#undef device
#undef constant
#undef threadgroup
#undef thread
#undef kernel
#undef vertex
#undef fragment

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)

typedef half __half;
typedef bfloat __nv_bfloat16;
typedef const int32_t* Shape;
typedef const int64_t* Strides;

#define threadIdx (metal_host::vector(metal_host_thread(), &metal_host::Attributes::thread_position_in_threadgroup))
#define blockIdx (metal_host::vector(metal_host_thread(), &metal_host::Attributes::threadgroup_position_in_grid))
#define blockDim (metal_host::vector(metal_host_thread(), &metal_host::Attributes::dispatch_threads_per_threadgroup))
#define gridDim (metal_host::vector(metal_host_thread(), &metal_host::Attributes::threadgroups_per_grid))

#define __syncthreads() metal_host_barrier(__LINE__, true, true)
#define __syncthreads_or(value) metal_host_any(__LINE__, (value) != 0)
#define __syncwarp() metal_host_simd_barrier(__LINE__, true, true)
#define __any_sync(mask, value) metal::simd_any(value)
#define __all_sync(mask, value) metal::simd_all(value)
#define __shfl_xor_sync(mask, value, distance) metal::simd_shuffle_xor(value, distance)
#define __shfl_sync(mask, value, lane) metal::simd_shuffle(value, lane)
#define __reduce_min_sync(mask, value) metal::simd_min(value)
#define __reduce_max_sync(mask, value) metal::simd_max(value)

#define __float_as_int(x) __builtin_bit_cast(int, float(x))
#define fmaxf(x, y) __builtin_fmaxf(x, y)
#define fabsf(x) __builtin_fabsf(x)

inline float __int_as_float(int x) {
  return __builtin_bit_cast(float, x);
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return uint4(x, y, z, w);
}
inline float __uint_as_float(unsigned x) {
  return __builtin_bit_cast(float, x);
}
inline float log2f(float x) {
  return metal::log2(x);
}

// --- src/fast/bodies/instructions_cuda.h ---

#define NATTEN_EMULATED

namespace natten {

inline float exp2_approximate(float x) {
  return metal::exp2(x);
}

template <int kBytes>
struct alignas(kBytes) CopiedBytes {
  unsigned char v[kBytes];
};
/// Done at once: that a copy is waited for is not checked.
template <int kBytes>
inline void copy_async(void* to, const void* from) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies no other number of bytes");
  *static_cast<CopiedBytes<kBytes>*>(to) = *static_cast<const CopiedBytes<kBytes>*>(from);
}
inline void wait_for_copies() {}

template <class T>
inline unsigned rounded_pair(float low, float high) {
  return unsigned(T(high).bits) << 16 | T(low).bits;
}

/// A lane's part of both operands of a product, as the other lanes see it.
struct PublishedFragments {
  unsigned a[4], b[2];
};
template <class T>
METAL_HOST_PLAIN float part_of(unsigned pair, unsigned place) {
  T x;
  x.bits = uint16_t(place % 2 != 0 ? pair >> 16 : pair);
  return float(x);
}
/// Element (row, k) of the left operand: four 8x8 blocks, of which lane 4 * row + k / 2 holds two neighbours.
template <class T>
METAL_HOST_PLAIN float left_element(unsigned row, unsigned k) {
  PublishedFragments of_lane;
  metal_host_simd_read(row % 8 * 4 + k % 8 / 2, &of_lane, sizeof(of_lane));
  return part_of<T>(of_lane.a[k / 8 * 2 + row / 8], k);
}
/// Element (k, column) of the right one: two blocks, transposed.
template <class T>
METAL_HOST_PLAIN float right_element(unsigned k, unsigned column) {
  PublishedFragments of_lane;
  metal_host_simd_read(column * 4 + k % 8 / 2, &of_lane, sizeof(of_lane));
  return part_of<T>(of_lane.b[k / 8], k);
}
template <class T>
METAL_HOST_PLAIN void add_products(float* c) {
  const unsigned lane = metal::simd_lane();
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (unsigned k = 0; k < 16; ++k) c[i] += left_element<T>(row, k) * right_element<T>(k, column);
  }
}
template <class T>
METAL_HOST_INLINE void multiply_fragments(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                                          int line = __builtin_LINE()) {
  const PublishedFragments mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  metal_host_simd_publish(line, &mine, sizeof(mine));
  add_products<T>(c);
}

/// To nearest, ties away from zero.
inline unsigned rounded_tf32(float x) {
  const unsigned bits = __builtin_bit_cast(unsigned, x);
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
}
/// What the hardware sees of an operand.
METAL_HOST_PLAIN inline float as_tf32(unsigned bits) {
  return __builtin_bit_cast(float, bits & 0xffffe000u);
}
/// Of the left operand lane 4 * row + k has (row, k), (row + 8, k), (row, k + 4), (row + 8, k + 4), k < 4; of the right
/// one lane 4 * column + k has (k, column), (k + 4, column).
METAL_HOST_PLAIN inline void add_tf32_products(float* c) {
  const unsigned lane = metal::simd_lane();
  for (unsigned i = 0; i < 4; ++i) {
    for (unsigned k = 0; k < 8; ++k) {
      PublishedFragments left, right;
      metal_host_simd_read(lane / 4 * 4 + k % 4, &left, sizeof(left));
      metal_host_simd_read((lane % 4 * 2 + i % 2) * 4 + k % 4, &right, sizeof(right));
      c[i] += as_tf32(left.a[k / 4 * 2 + i / 2]) * as_tf32(right.b[k / 4]);
    }
  }
}
METAL_HOST_INLINE void multiply_tf32(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                                     int line = __builtin_LINE()) {
  const PublishedFragments mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  metal_host_simd_publish(line, &mine, sizeof(mine));
  add_tf32_products(c);
}

METAL_HOST_PLAIN inline const uint16_t* published_row(unsigned lane) {
  const uint16_t* row;
  metal_host_simd_read(lane, &row, sizeof(row));
  return row;
}
template <bool kTransposed>
METAL_HOST_INLINE void load_fragments(unsigned (&to)[4], const void* from, int line = __builtin_LINE()) {
  metal_host_simd_publish(line, &from, sizeof(from));
  const unsigned lane = metal::simd_lane();
  for (unsigned block = 0; block < 4; ++block) {
    const unsigned row = lane / 4, pair = lane % 4 * 2;
    const uint16_t low = kTransposed ? published_row(8 * block + pair)[row] : published_row(8 * block + row)[pair];
    const uint16_t high =
        kTransposed ? published_row(8 * block + pair + 1)[row] : published_row(8 * block + row)[pair + 1];
    to[block] = unsigned(high) << 16 | low;
  }
}

}  // namespace natten

#include "cuda_warpgroup.h"
