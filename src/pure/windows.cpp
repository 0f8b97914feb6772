#include "pure/windows.h"

#include <algorithm>
#include <limits>

#include "mlx/ops.h"
#include "pure/pure.h"

namespace natten {

namespace {

// An integer array with the operations that window.h asks of a position. Host constants take the type and the stream of
// the other operand.
struct Index {
  explicit Index(std::int64_t c) : constant(c) {}
  Index(mx::array v, mx::Stream s) : value(std::move(v)), stream(s) {}

  mx::array as(mx::Dtype type) const { return value ? *value : mx::array(constant, type); }

  std::int64_t constant = 0;
  std::optional<mx::array> value;
  std::optional<mx::Stream> stream;
};

template <class Operation>
Index apply(Operation operation, const Index& a, const Index& b) {
  const Index& typed = a.value ? a : b;
  const mx::Dtype type = typed.value.value().dtype();
  const mx::Stream s = *typed.stream;
  return {operation(a.as(type), b.as(type), s), s};
}

Index operator+(const Index& a, const Index& b) {
  return apply([](const auto& x, const auto& y, auto s) { return mx::add(x, y, s); }, a, b);
}
Index operator-(const Index& a, const Index& b) {
  return apply([](const auto& x, const auto& y, auto s) { return mx::subtract(x, y, s); }, a, b);
}
Index operator*(const Index& a, const Index& b) {
  return apply([](const auto& x, const auto& y, auto s) { return mx::multiply(x, y, s); }, a, b);
}
Index operator%(const Index& a, const Index& b) {
  return apply([](const auto& x, const auto& y, auto s) { return mx::remainder(x, y, s); }, a, b);
}
Index floor_div(const Index& a, const Index& b) {
  return apply([](const auto& x, const auto& y, auto s) { return mx::floor_divide(x, y, s); }, a, b);
}
Index lesser(const Index& a, const Index& b) {
  return apply([](const auto& x, const auto& y, auto s) { return mx::minimum(x, y, s); }, a, b);
}
Index greater(const Index& a, const Index& b) {
  return apply([](const auto& x, const auto& y, auto s) { return mx::maximum(x, y, s); }, a, b);
}

// Positions, and sums of a few of them with windows, in 32 bits where they fit.
mx::Dtype index_type(const Problem& problem) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max() / 4;
  const bool is_narrow = std::all_of(problem.axes.begin(), problem.axes.end(), [](const Axis& a) {
    return a.length <= kMost && a.kernel_size <= kMost && a.dilation <= kMost;
  });
  return is_narrow ? mx::int32 : mx::int64;
}

Index column(const mx::array& lengths, int axis, mx::Dtype type, mx::Stream s) {
  return {mx::astype(mx::reshape(mx::take(lengths, axis, 1, s), {-1, 1, 1}, s), type, s), s};
}

// The group and the place in it of queries, and their windows.
struct QueryWindows {
  Index group, place;
  Range<Index> keys;
};

QueryWindows query_windows(const Axis& axis, const Index& query, const Index& length) {
  const Index dilation(axis.dilation), group = query % dilation, place = floor_div(query, dilation);
  return {group, place, window(axis, place, group_length(length, dilation, group))};
}

// Per query and slot of one axis, each [S, Q, K] with S the number of samples that differ (1 or B).
struct AxisWindows {
  mx::array row;    ///< of the key in the axis's key rows; in an empty slot of some key
  mx::array valid;  ///< bool: the slot is not empty
  mx::array bias;   ///< index into this axis of rpb
};

// Of the computed queries `at` [Q] of the axis's span.
AxisWindows axis_windows(const Axis& axis, const AxisSpan& span, std::int64_t slots, const Index& at,
                         const std::optional<Index>& lengths, bool is_partial, mx::Stream s) {
  const mx::Dtype type = at.value->dtype();
  const Index numbers(mx::expand_dims(*at.value, {0, 2}, s), s);
  Index query = (numbers + Index(query_index(axis, span.query_start))) * Index(axis.stride);
  const Index slot =
      Index(mx::astype(mx::reshape(mx::arange(0, static_cast<int>(slots), 1, s), {1, 1, -1}, s), type, s), s) +
      Index(axis.kernel_size - slots);
  const Index length = lengths.value_or(Index(axis.length));
  // Queries in the padding stand on the last computed token, to have a window, which is empty where its keys may not be
  // there. One that nobody computes could hold a NaN that may reach nothing.
  std::optional<mx::array> inside;
  if (lengths) {
    if (is_partial) inside = mx::less(*query.value, *length.value, s);
    query = lesser(query, floor_div(length - Index(1), Index(axis.stride)) * Index(axis.stride));
  }
  const auto [group, place, keys] = query_windows(axis, query, length);
  const Index key = key_in_slot(axis, place, keys.start, slot);
  const Index key_inside = greater(key, keys.start);
  Index row = key_inside * Index(axis.dilation) + group - Index(span.key_start);
  if (axis.is_circular) row = row % length;
  if (inside) row = lesser(greater(row, Index(0)), Index(span.key_rows - 1));
  mx::array valid = mx::greater_equal(*key.value, *keys.start.value, s);
  if (inside) valid = mx::logical_and(valid, *inside, s);
  return {mx::astype(*row.value, mx::int32, s), valid,
          mx::astype(*rpb_index(axis, place, key_inside).value, mx::int32, s)};
}

mx::array times(const mx::array& a, std::int64_t factor, mx::Stream s) {
  return mx::multiply(a, mx::array(static_cast<int>(factor)), s);
}

using Join = mx::array (*)(const mx::array&, const mx::array&, mx::StreamOrDevice);

}  // namespace

std::int64_t slot_count(const Problem& problem, int axis, Slots slots) {
  const Axis& a = problem.axes[axis];
  if (slots == Slots::all || !a.is_causal) return a.kernel_size;
  const AxisSpan span = problem.span(axis);
  const std::int64_t last = (query_index(a, span.query_start + span.query_rows) - 1) * a.stride;
  return std::min(a.kernel_size, last / a.dilation + 1);
}

bool has_empty_slots(const Problem& problem) {
  const auto& axes = problem.axes;
  return axes[0].is_causal || axes[1].is_causal || axes[2].is_causal || (problem.has_lengths && problem.spans);
}

BlockWindows block_windows(const Problem& problem, const std::optional<mx::array>& lengths, Slots slots,
                           std::int64_t first, std::int64_t last, mx::Stream s) {
  const auto& axes = problem.axes;
  const mx::Dtype type = index_type(problem);
  const Index query(mx::arange(static_cast<int>(first), static_cast<int>(last), 1, s), s);
  std::array<std::optional<AxisWindows>, kAxes> windows;  // axes of one token would add nothing to the last one's
  std::int64_t inner = 1;                                 // queries per position of the axis
  for (int axis = kAxes; axis-- > 0;) {
    if (axis + 1 < kAxes && axes[axis].length == 1 && axes[axis].kernel_size == 1) continue;
    const Index outer = inner == 1 ? query : floor_div(query, Index(inner));
    const Index at = outer % Index(problem.queries(axis));
    std::optional<Index> sample_lengths;
    if (lengths) sample_lengths = column(*lengths, axis, type, s);
    windows[axis] = axis_windows(axes[axis], problem.span(axis), slot_count(problem, axis, slots),
                                 {mx::astype(*at.value, type, s), s}, sample_lengths, problem.spans.has_value(), s);
    inner *= problem.queries(axis);
  }
  // Per-axis entries [S, Q, K_axis] over the slots of the window, [S, Q, slots].
  const auto over_slots = [&](auto field, Join join, std::array<std::int64_t, kAxes> factor) {
    std::optional<mx::array> joined;
    for (int axis = 0; axis < kAxes; ++axis) {
      if (!windows[axis]) continue;
      mx::array entry = (*windows[axis]).*field;
      if (factor[axis] != 1) entry = times(entry, factor[axis], s);
      joined =
          joined ? mx::flatten(join(mx::expand_dims(*joined, 3, s), mx::expand_dims(entry, 2, s), s), 2, 3, s) : entry;
    }
    return *joined;
  };

  const std::int64_t line = problem.span(2).key_rows, plane = problem.span(1).key_rows * line;
  const mx::array rows = over_slots(&AxisWindows::row, mx::add, {plane, line, 1});
  const mx::array sample = times(mx::arange(0, static_cast<int>(problem.batch), 1, s), problem.key_tokens(), s);
  BlockWindows block{mx::add(rows, mx::expand_dims(sample, {1, 2}, s), s), {}, {}};

  if (has_empty_slots(problem)) {
    block.valid = over_slots(&AxisWindows::valid, mx::logical_and, {1, 1, 1});
  }
  if (problem.has_rpb) {
    const std::int64_t bias_width = 2 * axes[2].kernel_size - 1;
    const std::int64_t bias_plane = (2 * axes[1].kernel_size - 1) * bias_width;
    block.bias = over_slots(&AxisWindows::bias, mx::add, {bias_plane, bias_width, 1});
  }
  return block;
}

namespace pure {

mx::array legal_lengths(const Problem& problem, const mx::array& lengths, mx::Stream s) {
  const mx::Dtype type = index_type(problem);
  const auto constant = [&](std::int64_t value) { return mx::array(value, type); };
  mx::array legal(true);
  for (int axis = 0; axis < kAxes; ++axis) {
    const Axis& a = problem.axes[axis];
    const AxisSpan span = problem.span(axis);
    const Index length = column(lengths, axis, type, s);  // [B, 1, 1]
    const auto require = [&](const mx::array& condition) {
      legal = mx::logical_and(legal, mx::all(condition, std::vector<int>{1, 2}, false, s), s);
    };
    require(mx::greater_equal(*length.value, constant(least_length(a)), s));
    require(mx::less_equal(*length.value, constant(a.length), s));
    if (a.is_circular) require(mx::equal(*(length % Index(a.dilation * a.gna_stride)).value, constant(0), s));
    if (!problem.spans) continue;
    const mx::array numbers = mx::reshape(mx::arange(0, static_cast<int>(problem.queries(axis)), 1, s), {1, -1, 1}, s);
    const Index at(mx::astype(numbers, type, s), s);
    const Index query = (at + Index(query_index(a, span.query_start))) * Index(a.stride);
    const mx::array is_padding = mx::greater_equal(*query.value, *length.value, s);
    const auto [group, place, keys] = query_windows(a, query, length);
    Index first = keys.start * Index(a.dilation) + group,
          end = (keys.end - Index(1)) * Index(a.dilation) + group + Index(1);
    if (a.is_circular) {  // around the axis: all of it
      const mx::array wraps =
          mx::logical_or(mx::less(*first.value, constant(0), s), mx::greater(*end.value, *length.value, s), s);
      first = {mx::where(wraps, constant(0), *first.value, s), s};
      end = {mx::where(wraps, *length.value, *end.value, s), s};
    }
    require(mx::logical_or(is_padding, mx::greater_equal(*first.value, constant(span.key_start), s), s));
    require(mx::logical_or(is_padding, mx::less_equal(*end.value, constant(span.key_start + span.key_rows), s), s));
  }
  return mx::where(mx::expand_dims(legal, 1, s), lengths, mx::array(0), s);
}

}  // namespace pure

}  // namespace natten
