// Rows of tokens between the storage types of tensors and float32 scratch memory. Included once per SIMD target.
#if defined(NATTEN_NATIVE_CPU_TILE_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_TILE_ROWS_INL_H_
#undef NATTEN_NATIVE_CPU_TILE_ROWS_INL_H_
#else
#define NATTEN_NATIVE_CPU_TILE_ROWS_INL_H_
#endif

#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "native/cpu/simd_convert-inl.h"
#include "native/cpu/tile_products-inl.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Rows of one tensor at equal distances.
struct TensorRows {
  char* data;
  std::int64_t stride;  ///< elements from one row to the next
  FloatType type;
};

/// to[row * pitch + c] = from[row][c] as float32, zeros from `dim` to the next multiple of a vector.
template <class T>
void load_rows(const T* from, std::int64_t stride, std::int64_t rows, std::int64_t dim, float* HWY_RESTRICT to,
               std::int64_t pitch) {
  const TileTag d;
  for (std::int64_t r = 0; r < rows; ++r, from += stride, to += pitch) {
    std::int64_t c = 0;
    for (; c + kLanes <= dim; c += kLanes) hn::Store(load_float(d, from + c), d, to + c);
    if (c < dim) hn::Store(load_float_n(d, from + c, dim - c), d, to + c);
  }
}

HWY_INLINE void load_rows(const TensorRows& from, std::int64_t rows, std::int64_t dim, float* to, std::int64_t pitch) {
  with_storage_type(from.type, [&](auto storage) {
    load_rows(reinterpret_cast<const decltype(storage)*>(from.data), from.stride, rows, dim, to, pitch);
  });
}

template <class T>
void store_rows(const float* HWY_RESTRICT from, std::int64_t pitch, std::int64_t rows, std::int64_t dim, T* to,
                std::int64_t stride) {
  const TileTag d;
  for (std::int64_t r = 0; r < rows; ++r, from += pitch, to += stride) {
    std::int64_t c = 0;
    for (; c + kLanes <= dim; c += kLanes) store_float(d, hn::Load(d, from + c), to + c);
    if (c < dim) store_float_n(d, hn::Load(d, from + c), to + c, dim - c);
  }
}

/// Like store_rows(), past the caches where whole lines are written. Needs a hwy::FlushStream() at the end.
template <class T>
void write_rows(const float* HWY_RESTRICT from, std::int64_t pitch, std::int64_t rows, std::int64_t dim, T* to,
                std::int64_t stride) {
  constexpr std::int64_t kLine = 64 / sizeof(T);
  if (HWY_TARGET == HWY_SCALAR || dim % kLine != 0 || stride % kLine != 0 ||
      reinterpret_cast<std::uintptr_t>(to) % 64 != 0) {
    return store_rows(from, pitch, rows, dim, to, stride);
  }
  const TileTag d;
  for (std::int64_t r = 0; r < rows; ++r, from += pitch, to += stride) {
    for (std::int64_t c = 0; c < dim; c += kLanes) {
      if constexpr (sizeof(T) == 4) {
        hn::Stream(hn::Load(d, from + c), d, to + c);
      } else {
        const hn::Rebind<std::uint16_t, TileTag> d16;
        alignas(64) std::uint16_t lanes[kLanes];
        store_float(d, hn::Load(d, from + c), reinterpret_cast<T*>(lanes));
        hn::Stream(hn::Load(d16, lanes), d16, reinterpret_cast<std::uint16_t*>(to + c));
      }
    }
  }
}

/// `is_streamed`: results are too large to stay in a cache.
HWY_INLINE void store_rows(const float* from, std::int64_t pitch, std::int64_t rows, std::int64_t dim,
                           const TensorRows& to, bool is_streamed = false) {
  with_storage_type(to.type, [&](auto storage) {
    auto* data = reinterpret_cast<decltype(storage)*>(to.data);
    is_streamed ? write_rows(from, pitch, rows, dim, data, to.stride)
                : store_rows(from, pitch, rows, dim, data, to.stride);
  });
}

/// Whether rows can be read as they are, without a copy to float32.
HWY_INLINE bool is_plain(const TensorRows& rows, std::int64_t dim) {
  return rows.type == FloatType::float32 && dim % 4 == 0;
}

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_TILE_ROWS_INL_H_
