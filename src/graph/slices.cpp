#include "graph/slices.h"

#include <utility>

#include "graph/decorated.h"
#include "graph/exportable.h"
#include "graph/pin.h"
#include "mlx/ops.h"

namespace natten {

namespace {

using Arrays = std::vector<mx::array>;

mx::array example(const mx::array& x, int number, mx::Stream s) {
  mx::Shape start(x.ndim(), 0), stop = x.shape();
  start[0] = number;
  stop[0] = number + 1;
  return mx::squeeze(mx::slice(x, start, stop, s), 0, s);
}

// `node` is what `slices` makes of inputs, whose last one is the start, and of axes. MLX's primitive evaluates it.
template <class Slices, class Vjp>
mx::array decorated_slices(const char* name, const mx::array& node, std::vector<int> linear,
                           const std::vector<int>& axes, const Slices& slices, Vjp vjp, mx::Stream s) {
  if (is_exporting()) return node;
  auto jvp = [=](const Arrays& inputs, mx::Stream s) { return slices(inputs, axes, s); };
  auto vmap = [=](const Arrays& inputs, const std::vector<int>& mapped_axes, mx::Stream s) {
    Arrays mapped = mapped_first(inputs, mapped_axes, s), parts;
    if (mapped_axes.back() < 0) {
      std::vector<int> behind = axes;
      for (int& axis : behind) ++axis;
      mapped.back() = inputs.back();
      return std::pair(slices(mapped, behind, s), 0);
    }
    for (int i = 0; i < mapped.back().shape(0); ++i) {
      Arrays own;
      for (const mx::array& x : mapped) own.push_back(example(x, i, s));
      parts.push_back(slices(own, axes, s));
    }
    return std::pair(mx::stack(parts, 0, s), 0);
  };
  return decorated(node, {name, std::move(vjp), std::move(jvp), std::move(vmap), std::move(linear), axes}, s);
}

}  // namespace

mx::array slice_from(const mx::array& x, const mx::array& start, const std::vector<int>& axes, const mx::Shape& lengths,
                     mx::Stream s) {
  mx::Shape shape = x.shape();
  for (std::size_t i = 0; i < axes.size(); ++i) shape[axes[i]] = lengths[i];
  const auto slices = [lengths](const Arrays& inputs, const std::vector<int>& axes, mx::Stream s) {
    return slice_from(inputs[0], inputs[1], axes, lengths, s);
  };
  auto vjp = [axes](const Arrays& inputs, const mx::array& cotangent, int, mx::Stream s) {
    return slice_updated(mx::zeros_like(inputs[0], s), cotangent, inputs[1], axes, s);
  };
  const mx::array node = mx::slice(x, start, axes, shape, s);
  return decorated_slices("NattenSlice:natten_mlx.exportable", node, {0}, axes, slices, std::move(vjp), s);
}

mx::array slice_updated(const mx::array& x, const mx::array& update, const mx::array& start,
                        const std::vector<int>& axes, mx::Stream s) {
  const auto slices = [](const Arrays& inputs, const std::vector<int>& axes, mx::Stream s) {
    return slice_updated(inputs[0], inputs[1], inputs[2], axes, s);
  };
  auto vjp = [axes](const Arrays& inputs, const mx::array& cotangent, int argument, mx::Stream s) {
    const mx::array &update = inputs[1], &start = inputs[2];
    if (argument == 0) return slice_updated(cotangent, mx::zeros_like(update, s), start, axes, s);
    mx::Shape lengths;
    for (const int axis : axes) lengths.push_back(update.shape(axis));
    return slice_from(cotangent, start, axes, lengths, s);
  };
  const mx::array node = mx::slice_update(x, update, start, axes, s);
  return decorated_slices("NattenSliceUpdate:natten_mlx.exportable", node, {0, 1}, axes, slices, std::move(vjp), s);
}

}  // namespace natten
