// Addresses of rows (the dense last axis) of strided tensors.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "native/cpu/half.h"
#include "native/cpu/kernels.h"

namespace natten::cpu {

using Place = std::array<std::int64_t, kAxes>;  ///< token or output position on the three axes

/// Address of row [batch, at..., head].
inline char* row_of(const Tensor& tensor, std::int64_t batch, Place at, std::int64_t head) {
  void* data = tensor.data;
  const std::int64_t* s = tensor.strides;
  if (tensor.cut_axis >= 0) {
    std::int64_t& row = at[tensor.cut_axis];
    if (row < tensor.first) {
      data = tensor.before.data;
      s = tensor.before.strides;
    } else if (row < tensor.end) {
      row -= tensor.first;
    } else {
      data = tensor.after.data;
      s = tensor.after.strides;
      row -= tensor.end;
    }
  }
  const std::int64_t offset = batch * s[0] + at[0] * s[1] + at[1] * s[2] + at[2] * s[3] + head * s[4];
  return static_cast<char*>(data) + offset * element_size(tensor.type);
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

/// Rows of query; rows of key and value; computed queries.
inline Grid query_grid(const Problem& p) {
  return {p.batch, {p.span(0).query_rows, p.span(1).query_rows, p.span(2).query_rows}};
}

inline Grid key_grid(const Problem& p) {
  return {p.batch, {p.span(0).key_rows, p.span(1).key_rows, p.span(2).key_rows}};
}

inline Grid output_grid(const Problem& p) {
  return {p.batch, {p.queries(0), p.queries(1), p.queries(2)}};
}

}  // namespace natten::cpu
