// metal::vec<T, N> for N = 2, 3, 4: the operations that kernels use, with Metal's size and alignment. No swizzles.
#pragma once

#include "scalars.h"

namespace metal {

template <class T, int N>
struct vec;

#define METAL_HOST_VEC_COMMON(N)     \
  vec() = default;                   \
  T& operator[](int i) {             \
    return (&x)[i];                  \
  }                                  \
  const T& operator[](int i) const { \
    return (&x)[i];                  \
  }

template <class T>
struct alignas(2 * sizeof(T)) vec<T, 2> {
  T x, y;
  METAL_HOST_VEC_COMMON(2)
  explicit vec(T s) : x(s), y(s) {}
  vec(T a, T b) : x(a), y(b) {}
  template <class U>
  explicit vec(vec<U, 2> o) : x(T(o.x)), y(T(o.y)) {}
};

template <class T>
struct alignas(4 * sizeof(T)) vec<T, 3> {
  T x, y, z;
  METAL_HOST_VEC_COMMON(3)
  explicit vec(T s) : x(s), y(s), z(s) {}
  vec(T a, T b, T c) : x(a), y(b), z(c) {}
  template <class U>
  explicit vec(vec<U, 3> o) : x(T(o.x)), y(T(o.y)), z(T(o.z)) {}
};

template <class T>
struct alignas(4 * sizeof(T)) vec<T, 4> {
  T x, y, z, w;
  METAL_HOST_VEC_COMMON(4)
  explicit vec(T s) : x(s), y(s), z(s), w(s) {}
  vec(T a, T b, T c, T d) : x(a), y(b), z(c), w(d) {}
  template <class U>
  explicit vec(vec<U, 4> o) : x(T(o.x)), y(T(o.y)), z(T(o.z)), w(T(o.w)) {}
};
#undef METAL_HOST_VEC_COMMON

#define METAL_HOST_VEC_OPERATOR(op)                        \
  template <class T, int N>                                \
  inline vec<T, N> operator op(vec<T, N> a, vec<T, N> b) { \
    for (int i = 0; i < N; ++i) a[i] = a[i] op b[i];       \
    return a;                                              \
  }                                                        \
  template <class T, int N>                                \
  inline vec<T, N> operator op(vec<T, N> a, T b) {         \
    for (int i = 0; i < N; ++i) a[i] = a[i] op b;          \
    return a;                                              \
  }                                                        \
  template <class T, int N>                                \
  inline vec<T, N> operator op(T a, vec<T, N> b) {         \
    for (int i = 0; i < N; ++i) b[i] = a op b[i];          \
    return b;                                              \
  }                                                        \
  template <class T, int N, class U>                       \
  inline vec<T, N>& operator op##=(vec<T, N>& a, U b) {    \
    return a = a op b;                                     \
  }
METAL_HOST_VEC_OPERATOR(+)
METAL_HOST_VEC_OPERATOR(-)
METAL_HOST_VEC_OPERATOR(*)
METAL_HOST_VEC_OPERATOR(/)
#undef METAL_HOST_VEC_OPERATOR

template <class T, int N>
inline T dot(vec<T, N> a, vec<T, N> b) {
  T sum = a[0] * b[0];
  for (int i = 1; i < N; ++i) sum = sum + a[i] * b[i];
  return sum;
}

#define METAL_HOST_VEC_NAMES(T) \
  using T##2 = vec<T, 2>;       \
  using T##3 = vec<T, 3>;       \
  using T##4 = vec<T, 4>;
METAL_HOST_VEC_NAMES(float)
METAL_HOST_VEC_NAMES(half)
METAL_HOST_VEC_NAMES(bfloat)
METAL_HOST_VEC_NAMES(int)
METAL_HOST_VEC_NAMES(uint)
METAL_HOST_VEC_NAMES(ulong)
#undef METAL_HOST_VEC_NAMES

}  // namespace metal
