#include "pure/windows.h"

#include "mlx/ops.h"

namespace natten {

namespace {

// An int32 array with the operations that window.h asks of a position. Host constants have no stream and take the other
// operand's.
struct Index {
  explicit Index(std::int64_t constant) : value(mx::array(static_cast<int>(constant))) {}
  Index(mx::array v, mx::Stream s) : value(std::move(v)), stream(s) {}

  mx::array value;
  std::optional<mx::Stream> stream;
};

mx::Stream stream_of(const Index& a, const Index& b) {
  return a.stream ? *a.stream : b.stream.value();
}

template <class Operation>
Index apply(Operation operation, const Index& a, const Index& b) {
  const mx::Stream s = stream_of(a, b);
  return {operation(a.value, b.value, s), s};
}

Index operator+(const Index& a, const Index& b) {
  return apply([](auto& x, auto& y, auto s) { return mx::add(x, y, s); }, a, b);
}
Index operator-(const Index& a, const Index& b) {
  return apply([](auto& x, auto& y, auto s) { return mx::subtract(x, y, s); }, a, b);
}
Index operator*(const Index& a, const Index& b) {
  return apply([](auto& x, auto& y, auto s) { return mx::multiply(x, y, s); }, a, b);
}
Index operator%(const Index& a, const Index& b) {
  return apply([](auto& x, auto& y, auto s) { return mx::remainder(x, y, s); }, a, b);
}
Index floor_div(const Index& a, const Index& b) {
  return apply([](auto& x, auto& y, auto s) { return mx::floor_divide(x, y, s); }, a, b);
}
Index lesser(const Index& a, const Index& b) {
  return apply([](auto& x, auto& y, auto s) { return mx::minimum(x, y, s); }, a, b);
}
Index greater(const Index& a, const Index& b) {
  return apply([](auto& x, auto& y, auto s) { return mx::maximum(x, y, s); }, a, b);
}

AxisWindows axis_windows(const Axis& axis, const std::optional<mx::array>& lengths, mx::Stream s) {
  const int queries = static_cast<int>(output_length(axis.length, axis.stride));
  const int slots = static_cast<int>(axis.kernel_size);
  Index query(mx::reshape(mx::multiply(mx::arange(0, queries, 1, s), mx::array(static_cast<int>(axis.stride)), s),
                          {1, queries, 1}, s),
              s);
  const Index slot(mx::reshape(mx::arange(0, slots, 1, s), {1, 1, slots}, s), s);
  Index length(axis.length);
  if (lengths) {
    length = Index(mx::reshape(*lengths, {-1, 1, 1}, s), s);
    query = lesser(query, length - Index(1));  // queries in the padding stand on the last token, to index inside
  }
  const Index dilation(axis.dilation);
  const Index group = query % dilation;
  const Index place = floor_div(query, dilation);
  const Range<Index> keys = window(axis, place, group_length(length, dilation, group));
  const Index key = key_in_slot(axis, place, keys.start, slot);
  const Index key_inside = greater(key, keys.start);
  return {(key_inside * dilation + group).value, mx::greater_equal(key.value, keys.start.value, s),
          rpb_index(axis, place, key_inside).value};
}

// Broadcasts per-axis entries [S, Q, K_axis] over the slots of the window and flattens those.
mx::array over_slots(const std::array<mx::array, kAxes>& entries,
                     mx::array (*join)(const mx::array&, const mx::array&, mx::StreamOrDevice), mx::Stream s) {
  const auto joined = join(join(mx::expand_dims(entries[0], {3, 4}, s), mx::expand_dims(entries[1], {2, 4}, s), s),
                           mx::expand_dims(entries[2], {2, 3}, s), s);
  return mx::flatten(joined, 2, 4, s);
}

mx::array scaled(const mx::array& a, std::int64_t factor, mx::Stream s) {
  return mx::multiply(a, mx::array(static_cast<int>(factor)), s);
}

}  // namespace

Windows make_windows(const Problem& problem, const std::optional<mx::array>& lengths, mx::Stream s) {
  Windows windows;
  for (int axis = 0; axis < kAxes; ++axis) {
    std::optional<mx::array> column;
    if (lengths) column = mx::take(*lengths, axis, 1, s);
    windows[axis] = axis_windows(problem.axes[axis], column, s);
  }
  return windows;
}

BlockWindows block_windows(const Problem& problem, const Windows& windows, std::int64_t first, std::int64_t last,
                           mx::Stream s) {
  const auto& axes = problem.axes;
  std::array<std::int64_t, kAxes> outputs;
  for (int axis = 0; axis < kAxes; ++axis) outputs[axis] = output_length(axes[axis].length, axes[axis].stride);

  std::array<std::optional<mx::array>, kAxes> position;  // of each query of the block, per axis
  const Index query(mx::arange(static_cast<int>(first), static_cast<int>(last), 1, s), s);
  const Index width(outputs[2]);
  const Index height(outputs[1]);
  position[2] = (query % width).value;
  position[1] = (floor_div(query, width) % height).value;
  position[0] = floor_div(query, Index(outputs[1] * outputs[2])).value;

  const auto entries = [&](auto field, std::array<std::int64_t, kAxes> factor) {
    const auto of = [&](int axis) {
      const mx::array entry = mx::take((*windows[axis]).*field, *position[axis], 1, s);
      return factor[axis] == 1 ? entry : scaled(entry, factor[axis], s);
    };
    return std::array<mx::array, kAxes>{of(0), of(1), of(2)};
  };

  const std::int64_t plane = axes[1].length * axes[2].length;
  mx::array rows = over_slots(entries(&AxisWindows::token, {plane, axes[2].length, 1}), mx::add, s);
  const mx::array sample = scaled(mx::arange(0, static_cast<int>(problem.batch), 1, s), axes[0].length * plane, s);
  BlockWindows block{mx::add(rows, mx::expand_dims(sample, {1, 2}, s), s), {}, {}};

  if (axes[0].is_causal || axes[1].is_causal || axes[2].is_causal) {
    block.valid = over_slots(entries(&AxisWindows::valid, {1, 1, 1}), mx::logical_and, s);
  }
  if (problem.has_rpb) {
    const std::int64_t bias_width = 2 * axes[2].kernel_size - 1;
    const std::int64_t bias_plane = (2 * axes[1].kernel_size - 1) * bias_width;
    block.bias = over_slots(entries(&AxisWindows::bias, {bias_plane, bias_width, 1}), mx::add, s);
  }
  return block;
}

}  // namespace natten
