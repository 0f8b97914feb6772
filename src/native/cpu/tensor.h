// Addresses of rows (the dense last axis) of strided tensors.
#pragma once

#include <array>
#include <cstdint>

#include "native/cpu/half.h"
#include "native/cpu/kernels.h"

namespace natten::cpu {

using Place = std::array<std::int64_t, kAxes>;  ///< token or output position on the three axes

/// Address of row [batch, at..., head].
inline char* row_of(const Tensor& tensor, std::int64_t batch, const Place& at, std::int64_t head) {
  const std::int64_t* s = tensor.strides;
  const std::int64_t offset = batch * s[0] + at[0] * s[1] + at[1] * s[2] + at[2] * s[3] + head * s[4];
  return static_cast<char*>(tensor.data) + offset * element_size(tensor.type);
}

/// The positions of [batch, A0, A1, A2] in row-major order.
struct Grid {
  std::int64_t batch;
  Place extent;

  std::int64_t per_sample() const { return extent[0] * extent[1] * extent[2]; }
  std::int64_t size() const { return batch * per_sample(); }
  Place place(std::int64_t index_in_sample) const {
    const std::int64_t plane = extent[1] * extent[2];
    return {index_in_sample / plane, index_in_sample % plane / extent[2], index_in_sample % extent[2]};
  }
  std::int64_t index(std::int64_t sample, const Place& at) const {
    return ((sample * extent[0] + at[0]) * extent[1] + at[1]) * extent[2] + at[2];
  }
};

inline Grid token_grid(const Problem& p) {
  return {p.batch, {p.axes[0].length, p.axes[1].length, p.axes[2].length}};
}

inline Grid output_grid(const Problem& p) {
  Grid grid{p.batch, {}};
  for (int a = 0; a < kAxes; ++a) grid.extent[a] = output_length(p.axes[a].length, p.axes[a].stride);
  return grid;
}

}  // namespace natten::cpu
