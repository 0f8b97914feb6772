// Fragments of a simdgroup's tile of sums on Apple's matrix units: 8x8 matrices, two of them stacked for 16 rows, of
// any floating type with float32 sums; weights are not rounded. fragments_cuda.h says what an engine has to offer.
// Where a lane's two elements of a matrix lie is not in Metal's specification; MLX's own kernels rely on it too.
namespace natten {

struct Lane {
  int index;  ///< of the thread in its threadgroup
  int row;
  int pair;
};

inline Lane lane_of(int index) {
  const int lane = int(unsigned(index) % 32);
  return Lane{index, lane / 16 * 4 + lane / 2 % 4, lane / 8 % 2 * 2 + lane % 2};
}
inline int lane_of_pair(Lane lane, int pair) {
  return lane.row / 4 * 16 + pair / 2 * 8 + lane.row % 4 * 2 + pair % 2;
}
inline float exchange_pairs(float x, int distance) {
  return exchange(x, distance % 2 + distance / 2 * 8);
}

inline void simd_barrier() {
  metal::simdgroup_barrier(metal::mem_flags::mem_threadgroup);
}

template <class T>
using Matrix = metal::simdgroup_matrix<T, 8, 8>;

template <class T>
inline Matrix<T> matrix_of(T x0, T x1) {
  metal::vec<T, 2> x;
  x[0] = x0;
  x[1] = x1;
  Matrix<T> m;
  reinterpret_cast<thread metal::vec<T, 2>&>(m.thread_elements()) = x;
  return m;
}

/// c0 c1 += a * b
template <class TA, class TB>
inline void multiply(thread float& c0, thread float& c1, Matrix<TA> a, Matrix<TB> b) {
  Matrix<float> c = matrix_of(c0, c1);
  metal::simdgroup_multiply_accumulate(c, a, b, c);
  c0 = c.thread_elements()[0];
  c1 = c.thread_elements()[1];
}

template <class T, int kChannels>
struct Held {
  T v[(kChannels + 7) / 8][2][2];  ///< of 8 channels: row, element

  template <class P>
  inline void load(View<P> from, const thread Items& items, Lane lane) thread {
    NA_UNROLL for (int r = 0; r < 2; ++r) {
      const Offset offset = offset_of(from, items.position[r]);
      NA_UNROLL for (int s = 0; s < (kChannels + 7) / 8; ++s) {
        NA_UNROLL for (int e = 0; e < 2; ++e) {
          const int channel = 8 * s + 2 * lane.pair + e;
          v[s][r][e] = channel < kChannels ? T(from.data[offset + channel * from.channel]) : T(0.0f);
        }
      }
    }
  }
};

template <class T, int kChannels, class P>
using HeldRows = Held<T, kChannels>;

template <int kPitch, class T, int kChannels>
inline void multiply_rows(thread float (&c)[NA_BLOCK / 8][4], const thread Held<T, kChannels>& held,
                          const threadgroup T* rows, Lane) {
  NA_UNROLL for (int s = 0; s < (kChannels + 7) / 8; ++s) {
    Matrix<T> upper = matrix_of(held.v[s][0][0], held.v[s][0][1]);
    Matrix<T> lower = matrix_of(held.v[s][1][0], held.v[s][1][1]);
    NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
      Matrix<T> b;
      metal::simdgroup_load(b, rows + i * 8 * kPitch + s * 8, ulong(kPitch), metal::ulong2(0), true);
      multiply(c[i][0], c[i][1], upper, b);
      multiply(c[i][2], c[i][3], lower, b);
    }
  }
}

template <int kPitch, int kBlocks, class T>
inline void add_rows(thread float (&c)[kBlocks][4], const thread float (&weights)[NA_BLOCK / 8][4],
                     const threadgroup T* rows, Lane) {
  NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
    Matrix<float> upper = matrix_of(weights[i][0], weights[i][1]);
    Matrix<float> lower = matrix_of(weights[i][2], weights[i][3]);
    NA_UNROLL for (int j = 0; j < kBlocks; ++j) {
      Matrix<T> b;
      metal::simdgroup_load(b, rows + i * 8 * kPitch + j * 8, ulong(kPitch));
      multiply(c[j][0], c[j][1], upper, b);
      multiply(c[j][2], c[j][3], lower, b);
    }
  }
}

}  // namespace natten
