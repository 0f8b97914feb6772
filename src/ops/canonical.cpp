#include "ops/canonical.h"

#include <limits>

#include "definition/problem.h"
#include "mlx/ops.h"

namespace natten {

// Axis by axis: where it adds several axes at once, expand_dims (and so the gradient of squeeze) is wrong under a vmap
// over an axis between them (MLX 0.32).
mx::array with_three_axes(const mx::array& x, int rank, mx::Stream s) {
  return rank == kAxes ? x : with_three_axes(mx::expand_dims(x, 1, s), rank + 1, s);
}

mx::array with_rank_axes(const mx::array& x, int rank, mx::Stream s) {
  return rank == kAxes ? x : with_rank_axes(mx::squeeze(x, 1, s), rank + 1, s);
}

mx::Shape query_grid(const Problem& p, std::initializer_list<std::int64_t> trailing) {
  mx::Shape shape{static_cast<int>(p.batch)};
  for (int axis = 0; axis < kAxes; ++axis) shape.push_back(static_cast<int>(p.queries(axis)));
  shape.insert(shape.end(), trailing.begin(), trailing.end());
  return shape;
}

std::vector<mx::array> with_whole_keys(const Problem& p, const std::vector<mx::array>& inputs, mx::Stream s) {
  if (!p.pieces) return inputs;
  std::vector<mx::array> whole{inputs[0]};  // query, key, value, those before, those after, tables
  for (const int tensor : {1, 2}) {
    whole.push_back(mx::concatenate({inputs[tensor + 2], inputs[tensor], inputs[tensor + 4]}, 1 + p.pieces->axis, s));
  }
  whole.insert(whole.end(), inputs.begin() + 7, inputs.end());
  return whole;
}

mx::array canonical_rpb(const mx::array& rpb, int rank, mx::Dtype type, mx::Stream s) {
  return with_three_axes(mx::astype(rpb, type, s), rank, s);
}

mx::array canonical_lengths(const mx::array& lengths, int rank, mx::Stream s) {
  const int batch = lengths.shape(0);
  mx::array table = mx::reshape(lengths, {batch, rank}, s);
  if (table.dtype() == mx::int64) {
    const mx::array least(std::int64_t{0}, mx::int64);
    const mx::array most(std::int64_t{std::numeric_limits<std::int32_t>::max()}, mx::int64);
    table = mx::astype(mx::clip(table, least, most, s), mx::int32, s);
  }
  if (rank == kAxes) return table;
  return mx::concatenate({mx::ones({batch, kAxes - rank}, mx::int32, s), table}, 1, s);
}

}  // namespace natten
