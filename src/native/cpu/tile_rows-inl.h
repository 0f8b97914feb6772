// Rows of tokens between the storage types of tensors and float32 scratch memory. Included once per SIMD target.
#if defined(NATTEN_NATIVE_CPU_TILE_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_TILE_ROWS_INL_H_
#undef NATTEN_NATIVE_CPU_TILE_ROWS_INL_H_
#else
#define NATTEN_NATIVE_CPU_TILE_ROWS_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "native/cpu/simd_convert-inl.h"
#include "native/cpu/tile_products-inl.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Rows of one tensor at equal distances, of which some may come again and again, or lie in other pieces.
struct TensorRows {
  char* data;
  std::int64_t stride;  ///< elements from one row to the next
  FloatType type;
  std::int64_t first = 0, period = 0;  ///< when not 0: row i is number (first + i) % period
  struct Cut {
    std::int64_t row;
    char* data;
  };
  int cuts = 0;
  Cut cut[2] = {};  ///< from which row on the rows lie elsewhere

  HWY_INLINE bool is_run() const { return period == 0 && cuts == 0; }
  /// The first `rows` of them, as a run where they are one.
  HWY_INLINE TensorRows run(std::int64_t rows) const {
    const bool is_one = period != 0 ? first + rows <= period : cuts > 0 && cut[0].row >= rows;
    return is_one ? TensorRows{data + first * stride * element_size(type), stride, type} : *this;
  }

  /// Calls visit(first row, rows, their address) for runs of rows at equal distances.
  template <class T, class Visit>
  HWY_INLINE void for_each_run(std::int64_t rows, T* typed, Visit&& visit) const {
    if (is_run()) return visit(std::int64_t{0}, rows, typed);
    if (period == 0) {
      std::int64_t row = 0;
      for (int i = 0; i < cuts && cut[i].row < rows; ++i) {
        if (row < cut[i].row) visit(row, cut[i].row - row, typed);
        row = cut[i].row;
        typed = reinterpret_cast<T*>(cut[i].data);
      }
      return visit(row, rows - row, typed);
    }
    for (std::int64_t row = 0, number = first; row < rows; number = 0) {
      const std::int64_t count = std::min(rows - row, period - number);
      visit(row, count, typed + number * stride);
      row += count;
    }
  }
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
    from.for_each_run(rows, reinterpret_cast<const decltype(storage)*>(from.data),
                      [&](std::int64_t row, std::int64_t count, const auto* data) {
                        load_rows(data, from.stride, count, dim, to + row * pitch, pitch);
                      });
  });
}

#if HWY_TARGET != HWY_SCALAR
/// Copies rows of bfloat16, so that zeros follow up to `padded`, a multiple of two vectors.
HWY_INLINE void copy_rows(const TensorRows& rows, std::int64_t count, std::int64_t dim, std::int64_t padded,
                          std::uint16_t* to, std::int64_t pitch) {
  const hn::Repartition<std::uint16_t, TileTag> d;
  rows.for_each_run(count, reinterpret_cast<const std::uint16_t*>(rows.data),
                    [&](std::int64_t row, std::int64_t run, const std::uint16_t* from) {
                      std::uint16_t* out = to + row * pitch;
                      for (std::int64_t i = 0; i < run; ++i, from += rows.stride, out += pitch) {
                        std::int64_t c = 0;
                        for (; c + 2 * kLanes <= dim; c += 2 * kLanes) hn::StoreU(hn::LoadU(d, from + c), d, out + c);
                        if (c == padded) continue;
                        std::memcpy(out + c, from + c, (dim - c) * sizeof(*out));
                        std::fill_n(out + dim, padded - dim, std::uint16_t{0});
                      }
                    });
}
#endif

/// Whether rows can be read as they are, without a copy to float32.
HWY_INLINE bool is_plain(const TensorRows& rows, std::int64_t dim) {
  return rows.type == FloatType::float32 && dim % 4 == 0 && rows.is_run();
}

/// to[channel * pitch + lane] = factor * row[lane][channel] of at most kLanes rows; zeros in the other lanes. `buffer`
/// has kLanes rows of whole vectors.
HWY_INLINE void pack_transposed(const TensorRows& all, std::int64_t count, std::int64_t dim, float factor,
                                float* buffer, float* to, std::int64_t pitch) {
  const TensorRows rows = all.run(count);
  if (count == kLanes && is_plain(rows, dim)) {
    return transpose_in(reinterpret_cast<const float*>(rows.data), rows.stride, dim, factor, to, pitch);
  }
  const std::int64_t row = round_up(dim, kLanes);
  load_rows(rows, count, dim, buffer, row);
  std::fill_n(buffer + count * row, (kLanes - count) * row, 0.0f);
  transpose_in(buffer, row, round_up(dim, 4), factor, to, pitch);
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
    to.for_each_run(rows, reinterpret_cast<decltype(storage)*>(to.data),
                    [&](std::int64_t row, std::int64_t count, auto* data) {
                      const float* first = from + row * pitch;
                      is_streamed ? write_rows(first, pitch, count, dim, data, to.stride)
                                  : store_rows(first, pitch, count, dim, data, to.stride);
                    });
  });
}

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_TILE_ROWS_INL_H_
