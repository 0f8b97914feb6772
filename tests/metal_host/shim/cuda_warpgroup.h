// Hopper's warpgroup instructions (src/fast/bodies/warpgroup_instructions.h), on the CPU: barriers are the runtime's,
// copies and products are done at once, so that nobody has to wait for them and what does not goes unseen.
#pragma once

namespace natten {

inline unsigned shared_address(const void* p) {
  return metal_host_shared_address(p);
}
inline void start_barrier(unsigned barrier, int arrivals) {
  metal_host_start_mbarrier(barrier, unsigned(arrivals));
}
inline void arrive(unsigned barrier) {
  metal_host_arrive(barrier);
}
inline void arrive_after_copies(unsigned barrier) {
  metal_host_arrive(barrier);
}
inline void wait_for(unsigned barrier, unsigned phase) {
  metal_host_wait(barrier, phase);
}
inline void publish_barriers() {}
inline void publish_to_units() {}
inline void named_barrier(int id, int threads) {
  metal_host_named_barrier(id, unsigned(threads), true);
}
inline void arrive_at_named(int id, int threads) {
  metal_host_named_barrier(id, unsigned(threads), false);
}
inline void begin_products() {}
inline void commit_products() {}
template <int kPending>
inline void wait_for_products() {}
inline void hand_registers_on() {}
inline void take_registers() {}

template <class P>
inline void copy_piece(unsigned to, P from) {
  copy_async<16>(metal_host_shared_pointer(to), from);
}
template <class P>
inline void copy_piece(unsigned to, P from, bool exists) {
  if (exists) return copy_piece(to, from);
  unsigned long long* const zeros = static_cast<unsigned long long*>(metal_host_shared_pointer(to));
  zeros[0] = zeros[1] = 0;
}
inline void copy_number(unsigned to, const float* from) {
  copy_async<4>(metal_host_shared_pointer(to), from);
}
inline float2 load_numbers(unsigned from) {
  return *static_cast<const float2*>(metal_host_shared_pointer(from));
}
template <class T>
inline void store_negative(T, unsigned) {}
inline void pin(float&) {}

/// What a descriptor tells: where a matrix begins, and how rows of 16 channels, or 16 rows, of it lie.
struct Descriptor {
  unsigned address, leading, stride, width;  ///< width: bytes of a row, 16 where nothing is swizzled
};
METAL_HOST_PLAIN inline Descriptor descriptor_of(unsigned long long bits) {
  const unsigned swizzle = unsigned(bits >> 62);
  return {unsigned(bits & 0x3fff) << 4, unsigned(bits >> 16 & 0x3fff) << 4, unsigned(bits >> 32 & 0x3fff) << 4,
          swizzle == 0 ? 16u : 256u >> swizzle};
}
/// Element k of 16 of a row (or of a column: `transposed`).
template <class T>
METAL_HOST_PLAIN float matrix_element(const Descriptor& d, unsigned row, unsigned k, bool transposed) {
  const unsigned columns = d.width / 2;  // that lie side by side
  unsigned at = d.address;
  if (transposed) {
    at += row / columns * d.leading + k / 8 * d.stride + k % 8 * d.width + row % columns * 2;
  } else if (d.width == 16) {
    at += row / 8 * d.stride + k / 8 * d.leading + row % 8 * 16 + k % 8 * 2;
  } else {
    at += row / 8 * d.stride + row % 8 * d.width + k * 2;
  }
  at ^= (at >> 7 & (d.width / 16 - 1)) << 4;
  T x;
  x.bits = *static_cast<const uint16_t*>(metal_host_shared_pointer(at));
  if (x.bits == 0xffff) metal_host_stop("matrix units read shared memory that was not written");
  return float(x);
}
/// c += a * b, a of the thread's two rows.
template <class T, int kBlocks>
METAL_HOST_PLAIN void add_warpgroup_products(float (&c)[kBlocks][4], const float (&a)[2][16], unsigned long long b,
                                             bool transposed) {
  const Descriptor right = descriptor_of(b);
  for (unsigned i = 0; i < kBlocks; ++i) {
    for (unsigned e = 0; e < 2; ++e) {
      for (unsigned k = 0; k < 16; ++k) {
        const float x = matrix_element<T>(right, 8 * i + metal::simd_lane() % 4 * 2 + e, k, transposed);
        for (unsigned r = 0; r < 2; ++r) c[i][2 * r + e] += a[r][k] * x;
      }
    }
  }
}
template <int kBlocks>
METAL_HOST_PLAIN void clear_unless(int accumulate, float (&c)[kBlocks][4]) {
  for (unsigned i = 0; i < 4 * kBlocks && accumulate == 0; ++i) c[i / 4][i % 4] = 0.0f;
}
template <class T>
METAL_HOST_PLAIN void left_rows(float (&rows)[2][16]) {
  for (unsigned k = 0; k < 16; ++k) {
    PublishedFragments of_lane;
    metal_host_simd_read(metal::simd_lane() / 4 * 4 + k % 8 / 2, &of_lane, sizeof(of_lane));
    for (unsigned r = 0; r < 2; ++r) rows[r][k] = part_of<T>(of_lane.a[k / 8 * 2 + r], k);
  }
}
template <class T>
METAL_HOST_PLAIN void left_rows(float (&rows)[2][16], const Descriptor& left) {
  const unsigned thread = metal_host_thread()->thread_index_in_threadgroup;
  for (unsigned k = 0; k < 16; ++k) {
    for (unsigned r = 0; r < 2; ++r) {
      rows[r][k] = matrix_element<T>(left, thread % 128 / 32 * 16 + 8 * r + thread % 32 / 4, k, false);
    }
  }
}
template <class T, bool kTransposed, int kBlocks>
METAL_HOST_INLINE void warpgroup_product(float (&c)[kBlocks][4], const unsigned (&a)[4], unsigned long long b,
                                         int accumulate, int line = __builtin_LINE()) {
  const PublishedFragments mine = {{a[0], a[1], a[2], a[3]}, {0, 0}};
  metal_host_simd_publish(line, &mine, sizeof(mine));
  float rows[2][16];
  left_rows<T>(rows);
  clear_unless(accumulate, c);
  add_warpgroup_products<T>(c, rows, b, kTransposed);
}
template <class T, bool kTransposed, int kBlocks>
METAL_HOST_INLINE void warpgroup_product(float (&c)[kBlocks][4], unsigned long long a, unsigned long long b,
                                         int accumulate, int line = __builtin_LINE()) {
  metal_host_simd_barrier(line, false, false);
  float rows[2][16];
  left_rows<T>(rows, descriptor_of(a));
  clear_unless(accumulate, c);
  add_warpgroup_products<T>(c, rows, b, kTransposed);
}

}  // namespace natten
