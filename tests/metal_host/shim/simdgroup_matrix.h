// simdgroup_matrix<T, 8, 8>: each lane holds two elements, which lie where they do on Apple's GPUs: in 4x4 quarters,
// of which the lanes of a half row are neighbours. A kernel that assumes another layout gets wrong numbers here too.
#pragma once

namespace metal {

template <class T, int kColumns, int kRows>
struct simdgroup_matrix {
  static_assert(kColumns == 8 && kRows == 8, "Metal has 8x8 matrices only");
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T x) {
    elements_[0] = x;
    elements_[1] = x;
  }
  vec<T, 2>& thread_elements() { return elements_; }

 private:
  vec<T, 2> elements_;
};

METAL_HOST_PLAIN inline uint simd_matrix_row(uint lane) {
  return (lane & 16) / 4 + (lane & 6) / 2;
}
METAL_HOST_PLAIN inline uint simd_matrix_column(uint lane) {
  return (lane & 8) / 2 + (lane & 1) * 2;
}
METAL_HOST_PLAIN inline uint simd_matrix_lane(uint row, uint column) {
  return (row & 4) * 4 + (row & 3) * 2 + (column & 4) * 2 + (column & 2) / 2;
}

/// Every lane loads its two elements.
template <class T>
inline void simdgroup_load(thread simdgroup_matrix<T, 8, 8>& to, const threadgroup T* from, ulong elements_per_row = 8,
                           ulong2 origin = ulong2(0), bool transpose = false) {
  const uint lane = simd_lane();
  const ulong row = simd_matrix_row(lane), column = simd_matrix_column(lane);
  for (ulong e = 0; e < 2; ++e) {
    const ulong x = transpose ? row : column + e, y = transpose ? column + e : row;
    to.thread_elements()[int(e)] = from[(origin.y + y) * elements_per_row + origin.x + x];
  }
}

/// Products and sums are rounded one by one, in the order of the inner dimension.
METAL_HOST_PLAIN inline void simd_matrix_multiply(float* sums) {
  const uint lane = simd_lane();
  const uint row = simd_matrix_row(lane), column = simd_matrix_column(lane);
  float a[4], b[4];  // two elements of the left matrix, two of the right one
  for (uint k = 0; k < 8; ++k) {
    metal_host_simd_read(simd_matrix_lane(row, k), a, sizeof(a));
    metal_host_simd_read(simd_matrix_lane(k, column), b, sizeof(b));
    for (int e = 0; e < 2; ++e) sums[e] += a[k % 2] * b[2 + e];
  }
}

template <class TD, class TA, class TB, class TC>
METAL_HOST_INLINE void simdgroup_multiply_accumulate(simdgroup_matrix<TD, 8, 8>& d, simdgroup_matrix<TA, 8, 8> a,
                                                     simdgroup_matrix<TB, 8, 8> b, simdgroup_matrix<TC, 8, 8> c,
                                                     int line = __builtin_LINE()) {
  static_assert(is_same_v<TD, float> && is_same_v<TC, float>, "sums are float32");
  const float factors[4] = {float(a.thread_elements()[0]), float(a.thread_elements()[1]), float(b.thread_elements()[0]),
                            float(b.thread_elements()[1])};
  metal_host_simd_publish(line, factors, sizeof(factors));
  float sums[2] = {c.thread_elements()[0], c.thread_elements()[1]};
  simd_matrix_multiply(sums);
  d.thread_elements()[0] = sums[0];
  d.thread_elements()[1] = sums[1];
}

}  // namespace metal
