// Products of bfloat16 tiles by the CPU's own instructions: AMX, or the dot products of AVX512-BF16. Highway 1.0.3 has
// neither as a target, so these are the only intrinsics of the kernels.
#pragma once

#include <cstdint>

namespace natten::cpu {

enum class MatrixUnit : std::uint8_t {
  none,
  dot,  ///< AVX512-BF16
  amx,
};

/// Whether this build and this machine have it. The first call asks Linux for the use of AMX's registers.
bool has_matrix_unit(MatrixUnit unit);

/// The thread's matrix registers, in use while this lives.
class MatrixRegisters {
 public:
  explicit MatrixRegisters(MatrixUnit unit);
  ~MatrixRegisters();
  MatrixRegisters(const MatrixRegisters&) = delete;
  MatrixRegisters& operator=(const MatrixRegisters&) = delete;

 private:
  const MatrixUnit unit_;
};

/// Rows and columns of a tile of sums, and of both operands along the other axis.
inline constexpr std::int64_t kMatrixTile = 16, kMatrixStep = 32;

/// Tiles of sums[row][column] (+)= sum over k of a[row][k] * b[k][column]: 16 rows, 16 columns, steps of 32 k. Two
/// neighbouring k of `b` lie side by side: [k / 2][column][k % 2]. All distances are in bytes; rows that are not
/// aligned to cache lines take AMX three times as long. Subnormal operands and sums count as zero.
struct MatrixProduct {
  const char* a;
  const std::int64_t *a_tiles, *a_steps;  ///< offsets of every tile of rows, and of every step
  std::int64_t a_row;
  const char* b;
  const std::int64_t *b_tiles, *b_steps;  ///< offsets of every tile of columns, and of every step
  std::int64_t b_row;
  std::int64_t row_tiles, column_tiles, steps;
  float* sums;
  const std::int64_t* sums_tiles;  ///< offsets of every tile of rows; tiles of columns are side by side
  std::int64_t sums_row;
};

template <bool kAdd>
void multiply(MatrixUnit unit, const MatrixProduct& product);

}  // namespace natten::cpu
