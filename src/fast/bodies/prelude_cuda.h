// What the bodies need of CUDA C++, compiled by NVRTC.
#define NA_DEVICE
#define NA_THREADGROUP
#define NA_THREAD
#define NA_UNROLL _Pragma("unroll")
#define NA_UNROLL_TWICE _Pragma("unroll 2")
#define NA_UNROLL_NONE _Pragma("unroll 1")
#define NA_INFINITY __int_as_float(0x7f800000)

namespace natten {

NATTEN_FN void barrier() {
  __syncthreads();
}
NATTEN_FN void barrier_with_device_memory() {
  __syncthreads();
}
NATTEN_FN bool any_lane(bool value) {
  return __any_sync(0xffffffffu, value);
}
NATTEN_FN bool all_lanes(bool value) {
  return __all_sync(0xffffffffu, value);
}
NATTEN_FN float exchange(float value, int distance) {
  return __shfl_xor_sync(0xffffffffu, value, distance);
}
template <class T>
NATTEN_FN T from_lane(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
NATTEN_FN int least_of_lanes(int value) {
  return __reduce_min_sync(0xffffffffu, value);
}
NATTEN_FN int greatest_of_lanes(int value) {
  return __reduce_max_sync(0xffffffffu, value);
}
NATTEN_FN bool any_of_threadgroup(bool value, const unsigned*, int) {
  return __syncthreads_or(value) != 0;
}
/// x, of which the compiler may assume nothing. It turns a minimum from which a loop counts into max(-a, -b, c), whose
/// first signs the assembler loses (CUDA 12.9 and 13.0, from sm_90 on; tests/nvrtc/gate.py looks for it).
NATTEN_FN int opaque(int x) {
  asm("" : "+r"(x));
  return x;
}
NATTEN_FN float exp2_of(float x) {
  return exp2_approximate(x);
}
NATTEN_FN float log2_of(float x) {
  return log2f(x);
}
/// The other one, where one is NaN.
NATTEN_FN float greatest_number(float a, float b) {
  return fmaxf(a, b);
}

template <class T>
NATTEN_FN T from_float(float x) {
  return T(x);
}

NATTEN_FN bool is_aligned(const void* data, int bytes) {
  return reinterpret_cast<unsigned long long>(data) % bytes == 0;
}

template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};

// Vectors of N elements, 16 bytes or a multiple; the address is a multiple of 16 bytes, or of the vector if smaller.
template <int N, class T>
NATTEN_FN void load_device(float* to, const T* from) {
  constexpr int kPack = N * sizeof(T) > 16 ? 16 / sizeof(T) : N;
  NA_UNROLL for (int i = 0; i < N; i += kPack) {
    const Pack<T, kPack> pack = *reinterpret_cast<const Pack<T, kPack>*>(from + i);
    NA_UNROLL for (int e = 0; e < kPack; ++e) to[i + e] = float(pack.v[e]);
  }
}
template <int N, class T>
NATTEN_FN void load_tile(float* to, const T* from) {
  load_device<N>(to, from);
}
template <int N, class T>
NATTEN_FN void store_device(T* to, const float* from) {
  constexpr int kPack = N * sizeof(T) > 16 ? 16 / sizeof(T) : N;
  NA_UNROLL for (int i = 0; i < N; i += kPack) {
    Pack<T, kPack> pack;
    NA_UNROLL for (int e = 0; e < kPack; ++e) pack.v[e] = from_float<T>(from[i + e]);
    *reinterpret_cast<Pack<T, kPack>*>(to + i) = pack;
  }
}
NATTEN_FN void store_pair(float* to, float a, float b) {
  *reinterpret_cast<Pack<float, 2>*>(to) = Pack<float, 2>{a, b};
}
// Asynchronous, so that many are in flight: `wait_for_copies` before the barrier that publishes them.
template <int N, class T>
NATTEN_FN void copy_to_tile(T* to, const T* from) {
  constexpr int kBytes = N * sizeof(T) > 16 ? 16 : N * sizeof(T);
  NA_UNROLL for (int i = 0; i < N; i += kBytes / sizeof(T)) {
    copy_async<kBytes>(to + i, from + i);
  }
}
template <int N, class T>
NATTEN_FN void clear_tile(T* to) {
  const float zeros[N] = {};
  store_device<N>(to, zeros);
}

}  // namespace natten
