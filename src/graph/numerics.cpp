#include "graph/numerics.h"

#include <limits>
#include <numbers>
#include <utility>
#include <vector>

#include "graph/decorated.h"
#include "graph/exportable.h"
#include "graph/pin.h"
#include "mlx/ops.h"

namespace natten {

namespace {

using Arrays = std::vector<mx::array>;

// The same from primitives that MLX can write to a file: x behind `fill`, and the index of one or the other. What a
// gradient has for `fill` ends there.
mx::array gathered_select(const mx::array& mask, const mx::array& x, double fill, mx::Stream s) {
  mx::Shape one = x.shape();
  one.back() = 1;
  const mx::array joined = mx::concatenate({x, mx::full(one, fill, x.dtype(), s)}, -1, s);
  const mx::array own = mx::arange(0, x.shape(-1), 1, s);
  const mx::array index = mx::where(mx::broadcast_to(mask, x.shape(), s), own, mx::array(x.shape(-1)), s);
  return mx::take_along_axis(joined, mx::stop_gradient(index, s), -1, s);
}

// where(mask, x, fill) of equal shapes.
mx::array select_arrays(const mx::array& mask, const mx::array& x, const mx::array& fill, mx::Stream s) {
  const auto vjp = [](const Arrays& inputs, const mx::array& cotangent, int, mx::Stream s) {
    return select(inputs[0], cotangent, 0.0, s);
  };
  const auto jvp = [](const Arrays& inputs, mx::Stream s) { return select(inputs[0], inputs[1], 0.0, s); };
  const auto mapped = [](const Arrays& inputs, const std::vector<int>& axes, mx::Stream s) {
    const Arrays all = mapped_first(inputs, axes, s);
    return std::pair(select_arrays(all[0], all[1], all[2], s), 0);
  };
  return decorated(mx::where(mask, x, fill, s), {"NattenSelect:natten_mlx.exportable", vjp, jvp, mapped, {1}}, s);
}

mx::array scattered(const mx::array& updates, const mx::array& rows, const mx::Shape& shape, mx::Stream s);

// Rows of x, [rows..., 1, row...], and the sum of such rows in an array of `shape`: each the transpose of the other.
mx::array gathered(const mx::array& x, const mx::array& rows, mx::Stream s) {
  mx::Shape row = x.shape();
  row[0] = 1;
  const auto vjp = [](const Arrays& inputs, const mx::array& cotangent, int, mx::Stream s) {
    return scattered(cotangent, inputs[1], inputs[0].shape(), s);
  };
  const auto jvp = [](const Arrays& inputs, mx::Stream s) { return gathered(inputs[0], inputs[1], s); };
  return decorated(mx::gather(x, rows, 0, row, s), {"NattenGather:natten_mlx.exportable", vjp, jvp}, s);
}

mx::array scattered(const mx::array& updates, const mx::array& rows, const mx::Shape& shape, mx::Stream s) {
  const auto vjp = [](const Arrays& inputs, const mx::array& cotangent, int, mx::Stream s) {
    return gathered(cotangent, inputs[1], s);
  };
  const auto jvp = [shape](const Arrays& inputs, mx::Stream s) { return scattered(inputs[2], inputs[1], shape, s); };
  return decorated(mx::scatter_add(mx::zeros(shape, updates.dtype(), s), rows, updates, 0, s),
                   {"NattenScatter:natten_mlx.exportable", vjp, jvp, {}, {2}}, s);
}

}  // namespace

mx::array select(const mx::array& mask, const mx::array& x, double fill, mx::Stream s) {
  if (is_exporting()) return gathered_select(mask, x, fill, s);
  const mx::array filler = mx::broadcast_to(mx::array(fill, x.dtype()), x.shape(), s);
  return select_arrays(mx::broadcast_to(mask, x.shape(), s), x, filler, s);
}

mx::array take_rows(const mx::array& x, const mx::array& rows, mx::Stream s) {
  if (is_exporting()) return mx::take(x, mx::stop_gradient(rows, s), 0, s);
  return mx::squeeze(gathered(x, rows, s), static_cast<int>(rows.ndim()), s);
}

mx::array exponential(const mx::array& x, mx::Stream s) {
  if (x.dtype() != mx::float64) return mx::exp(x, s);
  return mx::power(mx::array(std::numbers::e, mx::float64), x, s);
}

Softmax softmax(const mx::array& logits, mx::Stream s) {
  constexpr double kNothing = -std::numeric_limits<double>::infinity();
  // MLX crashes when it reduces an axis of length 1 in a trace for any shapes (0.32.4, CPU).
  const bool is_one = logits.shape(-1) == 1;
  const mx::array largest = mx::stop_gradient(is_one ? logits : mx::max(logits, -1, true, s), s);
  const mx::array some = mx::not_equal(largest, mx::array(kNothing, logits.dtype()), s);
  const mx::array top = mx::where(some, largest, mx::array(0.0, logits.dtype()), s);
  const mx::array weights = exponential(mx::subtract(logits, top, s), s);
  const mx::array total = select(some, is_one ? weights : mx::sum(weights, -1, true, s), 1.0, s);
  return {mx::divide(weights, total, s), select(some, mx::add(top, mx::log(total, s), s), kNothing, s)};
}

}  // namespace natten
