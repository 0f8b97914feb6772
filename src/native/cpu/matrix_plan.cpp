#include "native/cpu/matrix_plan.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "native/cpu/matrix_unit.h"
#include "native/cpu/target.h"
#include "native/cpu/tuning.h"

namespace natten::cpu {
namespace {

std::int64_t ceiling(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

/// Keys of `count` neighbouring queries together, at most.
std::int64_t joint_keys(const Axis& axis, std::int64_t count) {
  const std::int64_t places = ceiling(axis.length, axis.dilation);
  const std::int64_t step = axis.stride / std::gcd(axis.stride, axis.dilation);
  const std::int64_t shift =
      axis.gna_stride > 1 ? ceiling(count - 1, axis.gna_stride) * axis.gna_stride : (count - 1) * step;
  return std::min(places, axis.kernel_size + shift);
}

MatrixTile tile_of(const Problem& p, std::int64_t t0, std::int64_t t1, std::int64_t t2) {
  MatrixTile tile{{t0, t1, t2}, p.axes[1].kernel_size == 1 && t1 == 1, 0};
  std::int64_t columns = ceiling(joint_keys(p.axes[2], t2), kMatrixTile);
  std::int64_t rows = joint_keys(p.axes[1], t1), weighed = p.axes[1].kernel_size;
  if (tile.is_line) {
    columns += columns % 2;
  } else {
    rows += rows % 2;
    weighed = std::min(weighed + 1, rows);
  }
  const auto vectors = static_cast<double>(joint_keys(p.axes[0], t0) * rows * columns);
  const auto exponentials = static_cast<double>(p.axes[0].kernel_size * weighed * columns);
  const auto products = static_cast<double>(ceiling(p.head_dim, kMatrixStep)) +
                        0.5 * static_cast<double>(ceiling(p.value_dim, kMatrixTile));
  tile.cycles = vectors * products * tuning::kMatrixProductCycles +
                exponentials * static_cast<double>(kMatrixTile) * tuning::kExponentialCycles +
                static_cast<double>(p.head_dim + p.value_dim) * tuning::kMatrixChannelCycles;
  // Tiles that stick out.
  const std::int64_t t[] = {t0, t1, t2};
  for (int a = 0; a < kAxes; ++a) {
    const std::int64_t queries = std::max<std::int64_t>(ceiling(p.span(a).query_rows, p.axes[a].dilation), 1);
    tile.cycles *= static_cast<double>(ceiling(queries, t[a]) * t[a]) / static_cast<double>(queries);
  }
  return tile;
}

}  // namespace

MatrixTile matrix_tile(const Problem& p) {
  MatrixTile best{};
  best.cycles = std::numeric_limits<double>::infinity();
  for (std::int64_t t2 = kMatrixTile; t2 >= 1; t2 /= 2) {
    for (std::int64_t t1 = kMatrixTile / t2; t1 >= 1; t1 /= 2) {
      const MatrixTile tile = tile_of(p, kMatrixTile / t2 / t1, t1, t2);
      if (tile.cycles < best.cycles) best = tile;
    }
  }
  return best;
}

bool takes_matrix_unit(const Problem& p) {
  if (matrix_unit() == MatrixUnit::none || p.has_rpb) return false;
  for (const FloatType type : {p.query_type, p.key_type, p.value_type}) {
    if (type != FloatType::bfloat16) return false;
  }
  const auto channels = static_cast<double>(p.head_dim + p.value_dim);
  const double vector_cycles = channels * (static_cast<double>(kMatrixTile * p.kernel_volume()) / tuning::kVectorRate +
                                           tuning::kMatrixChannelCycles);
  // Along one axis float32 needs no more packing than this: 1-D K 31, D 32 takes 1.5 times as long, K 127, D 64 0.73 to
  // 0.93, K 2048 0.85.
  constexpr std::int64_t kLeastLine = 96, kLeastLineChannels = 128;
  const MatrixTile tile = matrix_tile(p);
  if (tile.is_line && (p.kernel_volume() < kLeastLine || p.head_dim + p.value_dim < kLeastLineChannels)) return false;
  return tile.cycles < tuning::kMatrixShare * vector_cycles;
}

bool takes_matrix_unit_backward(const Problem& p) {
  constexpr std::int64_t kLeastKeys = 169, kLeastChannels = 128;
  return takes_matrix_unit(p) && !matrix_tile(p).is_line && p.kernel_volume() >= kLeastKeys &&
         p.head_dim + p.value_dim >= kLeastChannels;
}

}  // namespace natten::cpu
