// Vectorised operations on rows of one channel axis: all the arithmetic of the generic kernels.
#pragma once

#include <cstdint>

#include "definition/problem.h"

namespace natten::cpu {

/// For one storage type, on the SIMD target in use. Strides are in elements, `rows` are dense along `dim`.
struct RowOps {
  void (*load)(const void* from, std::int64_t dim, float* to);
  void (*store)(const float* from, std::int64_t dim, void* to);
  /// out[r] = sum_c x[c] * rows[r * stride + c]
  void (*dot_rows)(const float* x, const void* rows, std::int64_t stride, std::int64_t count, std::int64_t dim,
                   float* out);
  /// acc[c] += sum_r weights[r] * rows[r * stride + c]
  void (*add_rows)(const float* weights, const void* rows, std::int64_t stride, std::int64_t count, std::int64_t dim,
                   float* acc);
};
RowOps row_ops(FloatType type);

/// x[i] = exp(x[i] - max), max over the row. Returns their sum, 0 where all x are -inf, and stores the maximum.
float softmax_row(float* x, std::int64_t count, float* max);
/// x[i] = exp(x[i] - shift)
void exp_row(float* x, std::int64_t count, float shift);

}  // namespace natten::cpu
