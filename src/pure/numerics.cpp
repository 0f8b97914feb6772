#include "pure/numerics.h"

#include <numbers>
#include <vector>

#include "mlx/ops.h"
#include "mlx/transforms.h"

namespace natten {

mx::array select(const mx::array& mask, const mx::array& x, double fill, mx::Stream s) {
  using Arrays = std::vector<mx::array>;
  const auto forward = [fill, s](const Arrays& inputs) -> Arrays {
    return {mx::where(inputs[0], inputs[1], mx::array(fill, inputs[1].dtype()), s)};
  };
  const auto backward = [s](const Arrays& inputs, const Arrays& cotangents, const Arrays&) -> Arrays {
    return {mx::zeros_like(inputs[0], s), select(inputs[0], cotangents[0], 0.0, s)};
  };
  return mx::custom_vjp(forward, backward)({mx::broadcast_to(mask, x.shape(), s), x})[0];
}

mx::array exponential(const mx::array& x, mx::Stream s) {
  if (x.dtype() != mx::float64) return mx::exp(x, s);
  return mx::power(mx::array(std::numbers::e, mx::float64), x, s);
}

mx::array log_sum_exp(const mx::array& x, mx::Stream s) {
  if (x.dtype() != mx::float64) return mx::logsumexp(x, -1, true, s);
  const mx::array top = mx::stop_gradient(mx::max(x, -1, true, s), s);
  return mx::add(top, mx::log(mx::sum(exponential(mx::subtract(x, top, s), s), -1, true, s), s), s);
}

}  // namespace natten
