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

// Per query and slot of one axis, each [S, Q, K] with S the number of samples that differ (1 or B).
struct AxisWindows {
  mx::array token;  ///< absolute key index; in an empty slot some key of the window
  mx::array valid;  ///< bool: the slot is not empty
  mx::array bias;   ///< index into this axis of rpb
};

// Of the queries at output positions `at` [Q] of the axis.
AxisWindows axis_windows(const Axis& axis, const Index& at, const std::optional<mx::array>& lengths, mx::Stream s) {
  const int slots = static_cast<int>(axis.kernel_size);
  Index query = Index(mx::expand_dims(at.value, {0, 2}, s), s) * Index(axis.stride);
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

mx::array scaled(const mx::array& a, std::int64_t factor, mx::Stream s) {
  return mx::multiply(a, mx::array(static_cast<int>(factor)), s);
}

using Join = mx::array (*)(const mx::array&, const mx::array&, mx::StreamOrDevice);

}  // namespace

BlockWindows block_windows(const Problem& problem, const std::optional<mx::array>& lengths, std::int64_t first,
                           std::int64_t last, mx::Stream s) {
  const auto& axes = problem.axes;
  const Index query(mx::arange(static_cast<int>(first), static_cast<int>(last), 1, s), s);
  std::array<std::optional<AxisWindows>, kAxes> windows;  // axes of one token would add nothing to the last one's
  std::int64_t inner = 1;                                 // queries per position of the axis
  for (int axis = kAxes; axis-- > 0;) {
    const std::int64_t outputs = output_length(axes[axis].length, axes[axis].stride);
    if (axis + 1 < kAxes && axes[axis].length == 1) continue;
    const Index outer = inner == 1 ? query : floor_div(query, Index(inner));
    std::optional<mx::array> column;
    if (lengths) column = mx::take(*lengths, axis, 1, s);
    windows[axis] = axis_windows(axes[axis], outer % Index(outputs), column, s);
    inner *= outputs;
  }
  // Per-axis entries [S, Q, K_axis] over the slots of the window, [S, Q, slots].
  const auto over_slots = [&](auto field, Join join, std::array<std::int64_t, kAxes> factor) {
    std::optional<mx::array> joined;
    for (int axis = 0; axis < kAxes; ++axis) {
      if (!windows[axis]) continue;
      mx::array entry = (*windows[axis]).*field;
      if (factor[axis] != 1) entry = scaled(entry, factor[axis], s);
      joined =
          joined ? mx::flatten(join(mx::expand_dims(*joined, 3, s), mx::expand_dims(entry, 2, s), s), 2, 3, s) : entry;
    }
    return *joined;
  };

  const std::int64_t plane = axes[1].length * axes[2].length;
  const mx::array rows = over_slots(&AxisWindows::token, mx::add, {plane, axes[2].length, 1});
  const mx::array sample = scaled(mx::arange(0, static_cast<int>(problem.batch), 1, s), axes[0].length * plane, s);
  BlockWindows block{mx::add(rows, mx::expand_dims(sample, {1, 2}, s), s), {}, {}};

  if (axes[0].is_causal || axes[1].is_causal || axes[2].is_causal) {
    block.valid = over_slots(&AxisWindows::valid, mx::logical_and, {1, 1, 1});
  }
  if (problem.has_rpb) {
    const std::int64_t bias_width = 2 * axes[2].kernel_size - 1;
    const std::int64_t bias_plane = (2 * axes[1].kernel_size - 1) * bias_width;
    block.bias = over_slots(&AxisWindows::bias, mx::add, {bias_plane, bias_width, 1});
  }
  return block;
}

}  // namespace natten
