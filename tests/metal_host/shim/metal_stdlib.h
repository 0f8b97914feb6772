// The part of the Metal standard library that MLX kernels may count on, on the CPU. Comes before the generated source,
// as MLX's own header does on Metal. It includes nothing but fixed-width integers: it is compiled with every kernel.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "runtime.h"

typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned char uchar;
typedef unsigned long ulong;

#ifdef METAL_HOST_ADDRESS_SPACES
#include "builtin_types.h"
#else
#include "vectors.h"
#endif

// Not instrumented: these touch the emulator's memory, not the kernel's.
#define METAL_HOST_PLAIN __attribute__((no_sanitize("thread"), noinline))
// Inlined, so that the runtime sees which call of the kernel it is that waits.
#define METAL_HOST_INLINE __attribute__((always_inline)) inline

namespace metal {

// --- Types ---

template <bool, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  using type = T;
};
template <bool C, class T = void>
using enable_if_t = typename enable_if<C, T>::type;
template <bool, class T, class>
struct conditional {
  using type = T;
};
template <class T, class F>
struct conditional<false, T, F> {
  using type = F;
};
template <bool C, class T, class F>
using conditional_t = typename conditional<C, T, F>::type;
template <class, class>
inline constexpr bool is_same_v = false;
template <class T>
inline constexpr bool is_same_v<T, T> = true;

template <class T>
struct numeric_limits;
template <>
struct numeric_limits<float> {
  static constexpr float infinity() { return __builtin_inff(); }
  static constexpr float quiet_NaN() { return __builtin_nanf(""); }
  static constexpr float max() { return __FLT_MAX__; }
  static constexpr float lowest() { return -__FLT_MAX__; }
  static constexpr float min() { return __FLT_MIN__; }
  static constexpr float epsilon() { return __FLT_EPSILON__; }
};

// --- Mathematics: always precise here, also in namespace fast ---

#define METAL_HOST_MATH_1(name)                 \
  inline float name(float x) {                  \
    return __builtin_##name##f(x);              \
  }                                             \
  inline half name(half x) {                    \
    return half(__builtin_##name##f(float(x))); \
  }
#define METAL_HOST_MATH_FUNCTIONS         \
  METAL_HOST_MATH_1(exp)                  \
  METAL_HOST_MATH_1(exp2)                 \
  METAL_HOST_MATH_1(log)                  \
  METAL_HOST_MATH_1(log2)                 \
  METAL_HOST_MATH_1(sqrt)                 \
  METAL_HOST_MATH_1(floor)                \
  METAL_HOST_MATH_1(ceil)                 \
  inline float fabs(float x) {            \
    return __builtin_fabsf(x);            \
  }                                       \
  inline float rsqrt(float x) {           \
    return 1.0f / __builtin_sqrtf(x);     \
  }                                       \
  inline float divide(float x, float y) { \
    return x / y;                         \
  }                                       \
  inline float fmax(float x, float y) {   \
    return __builtin_fmaxf(x, y);         \
  }                                       \
  inline float fmin(float x, float y) {   \
    return __builtin_fminf(x, y);         \
  }

METAL_HOST_MATH_FUNCTIONS
namespace fast {
METAL_HOST_MATH_FUNCTIONS
}
namespace precise {
METAL_HOST_MATH_FUNCTIONS
}
#undef METAL_HOST_MATH_FUNCTIONS
#undef METAL_HOST_MATH_1

inline float fma(float a, float b, float c) {
  return __builtin_fmaf(a, b, c);
}
inline bool isnan(float x) {
  return __builtin_isnan(x);
}
inline bool isinf(float x) {
  return __builtin_isinf(x);
}
inline bool isfinite(float x) {
  return __builtin_isfinite(x);
}

template <class T>
inline T abs(T x) {
  return x < T(0) ? -x : x;
}
template <class T>
inline T max(T a, T b) {
  return a < b ? b : a;
}
template <class T>
inline T min(T a, T b) {
  return b < a ? b : a;
}
inline float max(float a, float b) {
  return __builtin_fmaxf(a, b);
}  // of a number and a NaN: the number
inline float min(float a, float b) {
  return __builtin_fminf(a, b);
}
template <class T>
inline T clamp(T x, T low, T high) {
  return min(max(x, low), high);
}
template <class T>
inline T select(T if_false, T if_true, bool condition) {
  return condition ? if_true : if_false;
}

// --- Barriers ---

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
inline constexpr mem_flags operator|(mem_flags a, mem_flags b) {
  return mem_flags(int(a) | int(b));
}

METAL_HOST_INLINE void threadgroup_barrier(mem_flags flags, int line = __builtin_LINE()) {
  metal_host_barrier(line, int(flags) & int(mem_flags::mem_threadgroup), int(flags) & int(mem_flags::mem_device));
}
METAL_HOST_INLINE void simdgroup_barrier(mem_flags flags, int line = __builtin_LINE()) {
  metal_host_simd_barrier(line, int(flags) & int(mem_flags::mem_threadgroup), int(flags) & int(mem_flags::mem_device));
}

// --- Simd-group operations. All lanes must take part, which is stricter than Metal and what CUDA's full mask demands
// ---

template <class T>
METAL_HOST_INLINE T simd_lane_value(T value, uint lane, int line) {
  metal_host_simd_publish(line, &value, sizeof(T));
  metal_host_simd_read(lane, &value, sizeof(T));
  return value;
}
METAL_HOST_PLAIN inline uint simd_lane() {
  return metal_host_thread()->thread_index_in_simdgroup;
}
template <class T>
METAL_HOST_INLINE T simd_shuffle(T value, ushort lane, int line = __builtin_LINE()) {
  return simd_lane_value(value, lane, line);
}
template <class T>
METAL_HOST_INLINE T simd_broadcast(T value, ushort lane, int line = __builtin_LINE()) {
  return simd_lane_value(value, lane, line);
}
template <class T>
METAL_HOST_INLINE T simd_broadcast_first(T value, int line = __builtin_LINE()) {
  return simd_lane_value(value, 0, line);
}
template <class T>
METAL_HOST_INLINE T simd_shuffle_xor(T value, ushort mask, int line = __builtin_LINE()) {
  return simd_lane_value(value, simd_lane() ^ mask, line);
}
template <class T>
METAL_HOST_INLINE T simd_shuffle_down(T value, ushort delta, int line = __builtin_LINE()) {
  return simd_lane_value(value, simd_lane() + delta, line);
}
template <class T>
METAL_HOST_INLINE T simd_shuffle_up(T value, ushort delta, int line = __builtin_LINE()) {
  return simd_lane_value(value, simd_lane() - delta, line);
}

/// Combines the published values of the lanes that exist in a fixed order: every lane gets the same bits. (Metal does
/// not say in which order it adds.)
template <class T, class Combine>
METAL_HOST_PLAIN T simd_combine(Combine combine) {
  const metal_host_thread_attributes& at = *metal_host_thread();
  const uint total = at.threads_per_threadgroup[0] * at.threads_per_threadgroup[1] * at.threads_per_threadgroup[2];
  const uint lanes = min(32u, total - at.simdgroup_index_in_threadgroup * 32u);
  T values[32];
  for (uint i = 0; i < lanes; ++i) metal_host_simd_read(i, &values[i], sizeof(T));
  for (uint step = 1; step < lanes; step *= 2) {
    for (uint i = 0; i + step < lanes; i += 2 * step) values[i] = combine(values[i], values[i + step]);
  }
  return values[0];
}
template <class T, class Combine>
METAL_HOST_INLINE T simd_reduce(T value, Combine combine, int line) {
  metal_host_simd_publish(line, &value, sizeof(T));
  return simd_combine<T>(combine);
}
template <class T>
METAL_HOST_INLINE T simd_sum(T value, int line = __builtin_LINE()) {
  return simd_reduce(
      value, [](T a, T b) { return a + b; }, line);
}
template <class T>
METAL_HOST_INLINE T simd_max(T value, int line = __builtin_LINE()) {
  return simd_reduce(
      value, [](T a, T b) { return max(a, b); }, line);
}
template <class T>
METAL_HOST_INLINE T simd_min(T value, int line = __builtin_LINE()) {
  return simd_reduce(
      value, [](T a, T b) { return min(a, b); }, line);
}
METAL_HOST_INLINE bool simd_any(bool value, int line = __builtin_LINE()) {
  return simd_reduce(
      value, [](bool a, bool b) { return a || b; }, line);
}
METAL_HOST_INLINE bool simd_all(bool value, int line = __builtin_LINE()) {
  return simd_reduce(
      value, [](bool a, bool b) { return a && b; }, line);
}

}  // namespace metal

#ifndef METAL_HOST_ADDRESS_SPACES
namespace metal_host {

using Attributes = metal_host_thread_attributes;
METAL_HOST_PLAIN inline metal::uint3 vector(const Attributes* at, uint32_t (Attributes::*member)[3]) {
  return metal::uint3((at->*member)[0], (at->*member)[1], (at->*member)[2]);
}
METAL_HOST_PLAIN inline uint vector(const Attributes* at, uint32_t Attributes::*member) {
  return at->*member;
}

template <class Array, int64_t alignment = alignof(Array)>
METAL_HOST_PLAIN Array& shared(int id) {
  return *static_cast<Array*>(metal_host_shared(id, sizeof(Array), alignment));
}

}  // namespace metal_host
#endif

template <class To, class From>
inline To as_type(From x) {
  return __builtin_bit_cast(To, x);
}

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.69314718055994530942f

using namespace metal;

// Words of the language. `kernel` stays empty even in a name's place, so a variable of that name does not compile, as
// on Metal. Declarations of threadgroup arrays are rewritten before compilation (rewrite_shared_arrays).
#ifdef METAL_HOST_ADDRESS_SPACES
#define device __attribute__((address_space(1)))
#define constant __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#else
#define device
#define constant
#define threadgroup
#endif
#define thread
#define kernel
#define vertex
#define fragment

#include "simdgroup_matrix.h"
