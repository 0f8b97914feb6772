// What the bodies need of Metal Shading Language.
#define NATTEN_FN inline
#define NA_DEVICE device
#define NA_THREADGROUP threadgroup
#define NA_THREAD thread
#define NA_UNROLL _Pragma("clang loop unroll(full)")
#define NA_UNROLL_TWICE _Pragma("clang loop unroll_count(2)")
#define NA_UNROLL_NONE _Pragma("clang loop unroll(disable)")
#define NA_INFINITY INFINITY

namespace natten {

inline void barrier() {
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
}
inline void barrier_with_device_memory() {
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup | metal::mem_flags::mem_device);
}
inline bool any_lane(bool value) {
  return metal::simd_any(value);
}
inline bool all_lanes(bool value) {
  return metal::simd_all(value);
}
inline float exchange(float value, int distance) {
  return metal::simd_shuffle_xor(value, ushort(distance));
}
template <class T>
inline T from_lane(T value, int lane) {
  return metal::simd_shuffle(value, ushort(lane));
}
inline int least_of_lanes(int value) {
  return metal::simd_min(value);
}
inline int greatest_of_lanes(int value) {
  return metal::simd_max(value);
}
/// `scratch`: a word for each simdgroup.
inline bool any_of_threadgroup(bool value, threadgroup unsigned* scratch, int index) {
  const bool any = any_lane(value);
  barrier();
  if (index % 32 == 0) scratch[index / 32] = any ? 1u : 0u;
  barrier();
  bool found = false;
  for (int i = 0; i < NA_THREADS / 32; ++i) found = found || scratch[i] != 0;
  return found;
}
/// Where NVIDIA's compilers must assume nothing (prelude_cuda.h).
inline int opaque(int x) {
  return x;
}
inline float exp2_of(float x) {
  return metal::exp2(x);
}
inline float log2_of(float x) {
  return metal::log2(x);
}
/// The other one, where one is NaN.
inline float greatest_number(float a, float b) {
  return metal::fmax(a, b);
}

template <class T>
inline T from_float(float x) {
  return T(x);
}

// MLX declares an input `device`, but `constant` when it has fewer than 8 elements. Of these no vectors are read: for
// pointers to them the functions without `device` are chosen, of which only is_aligned is ever called.
template <class P>
inline bool is_aligned(P, int) {
  return false;
}
template <class T>
inline bool is_aligned(const device T* data, int bytes) {
  return long(data) % bytes == 0;
}
template <int N, class P>
inline void load_device(thread float*, P) {}
template <int N, class T, class P>
inline void copy_to_tile(threadgroup T*, P) {}

// Vectors of N = 4 k elements, or to device memory 2; the address is a multiple of 4 elements, or 2.
template <int N, class T>
inline void load_device(thread float* to, const device T* from) {
  NA_UNROLL for (int i = 0; i < N; i += 4) {
    const metal::vec<T, 4> v = *(const device metal::vec<T, 4>*)(from + i);
    NA_UNROLL for (int e = 0; e < 4; ++e) to[i + e] = float(v[e]);
  }
}
template <int N, class T>
inline void load_tile(thread float* to, const threadgroup T* from) {
  NA_UNROLL for (int i = 0; i < N; i += 4) {
    const metal::vec<T, 4> v = *(const threadgroup metal::vec<T, 4>*)(from + i);
    NA_UNROLL for (int e = 0; e < 4; ++e) to[i + e] = float(v[e]);
  }
}
template <int N, class T>
inline void store_device(device T* to, const thread float* from) {
  constexpr int kPack = N < 4 ? N : 4;
  NA_UNROLL for (int i = 0; i < N; i += kPack) {
    metal::vec<T, kPack> v;
    NA_UNROLL for (int e = 0; e < kPack; ++e) v[e] = T(from[i + e]);
    *(device metal::vec<T, kPack>*)(to + i) = v;
  }
}
template <int N, class T>
inline void copy_to_tile(threadgroup T* to, const device T* from) {
  NA_UNROLL for (int i = 0; i < N; i += 4) {
    *(threadgroup metal::vec<T, 4>*)(to + i) = *(const device metal::vec<T, 4>*)(from + i);
  }
}
inline void store_pair(threadgroup float* to, float a, float b) {
  metal::vec<float, 2> v;
  v[0] = a;
  v[1] = b;
  *(threadgroup metal::vec<float, 2>*)to = v;
}
template <int N, class T>
inline void clear_tile(threadgroup T* to) {
  NA_UNROLL for (int i = 0; i < N; i += 4) * (threadgroup metal::vec<T, 4>*)(to + i) = metal::vec<T, 4>(T(0.0f));
}
inline void wait_for_copies() {}

}  // namespace natten
