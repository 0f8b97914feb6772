#include "pure/padding.h"

#include "graph/numerics.h"
#include "mlx/ops.h"

namespace natten {

namespace {

mx::array row(std::array<std::int64_t, kAxes> values) {
  return mx::array({static_cast<int>(values[0]), static_cast<int>(values[1]), static_cast<int>(values[2])}, {1, kAxes});
}

// bool [B, 1]: samples whose axes may have such lengths.
mx::array legal(const Problem& problem, const mx::array& lengths, mx::Stream s) {
  const auto& [x, y, z] = problem.axes;
  const mx::array longest = row({x.length, y.length, z.length});
  const mx::array shortest = row({least_length(x), least_length(y), least_length(z)});
  return mx::all(mx::logical_and(mx::greater_equal(lengths, shortest, s), mx::less_equal(lengths, longest, s), s), 1,
                 true, s);
}

// [B, n0, n1, n2]: token `start + i * step` of each axis lies before its length; false for the whole of an illegal
// sample.
struct Tokens {
  std::int64_t start, step, count;
};
mx::array inside(const std::array<Tokens, kAxes>& tokens, const mx::array& lengths, const mx::array& legal,
                 mx::Stream s) {
  mx::array mask = mx::reshape(legal, {-1, 1, 1, 1}, s);
  for (int axis = 0; axis < kAxes; ++axis) {
    const auto [start, step, count] = tokens[axis];
    mx::Shape along{1, 1, 1, 1};
    along[axis + 1] = -1;
    const mx::array numbers = mx::arange(0, static_cast<int>(count), 1, s);
    const mx::array token =
        mx::add(mx::multiply(numbers, mx::array(static_cast<int>(step)), s), mx::array(static_cast<int>(start)), s);
    const mx::array length = mx::reshape(mx::take(lengths, axis, 1, s), {-1, 1, 1, 1}, s);
    mask = mx::logical_and(mask, mx::less(mx::reshape(token, along, s), length, s), s);
  }
  return mask;
}

}  // namespace

Padding::Padding(const Problem& problem, const std::optional<mx::array>& lengths, mx::Stream s) : stream_(s) {
  if (!lengths) return;
  const auto& [x, y, z] = problem.axes;
  const mx::array longest = row({x.length, y.length, z.length});
  const mx::array are_legal = legal(problem, *lengths, s);
  lengths_ = mx::where(are_legal, *lengths, longest, s);
  std::array<Tokens, kAxes> tokens, queries;
  for (int axis = 0; axis < kAxes; ++axis) {
    const Axis& a = problem.axes[axis];
    const AxisSpan span = problem.span(axis);
    tokens[axis] = {span.key_start, 1, span.key_rows};
    const std::int64_t count = problem.queries(axis);
    queries[axis] = {query_index(a, span.query_start) * a.stride, count > 1 ? a.stride : 1, count};
  }
  tokens_ = inside(tokens, *lengths_, are_legal, s);
  queries_ = inside(queries, *lengths_, are_legal, s);
}

mx::array Padding::zero(const mx::array& x, const std::optional<mx::array>& mask) const {
  if (!mask) return x;
  mx::array wide = *mask;
  while (wide.ndim() < x.ndim()) wide = mx::expand_dims(wide, -1, stream_);
  return select(wide, x, 0.0, stream_);
}

mx::array zero_unused_rows(const Problem& problem, const mx::array& query, const std::optional<mx::array>& lengths,
                           mx::Stream s) {
  mx::array x = query;
  std::array<Tokens, kAxes> rows;
  for (int axis = 0; axis < kAxes; ++axis) {
    const AxisSpan span = problem.span(axis);
    const std::int64_t stride = problem.axes[axis].stride;
    rows[axis] = {span.query_start, 1, span.query_rows};
    if (stride == 1) continue;
    const int first = static_cast<int>(span.query_start % stride);
    const mx::array numbers = mx::arange(first, first + static_cast<int>(span.query_rows), s);
    mx::Shape along(query.ndim(), 1);
    along[axis + 1] = -1;
    const mx::array place = mx::remainder(numbers, mx::array(static_cast<int>(stride)), s);
    x = select(mx::reshape(mx::equal(place, mx::array(0), s), along, s), x, 0.0, s);
  }
  if (!lengths) return x;
  mx::array mask = inside(rows, *lengths, legal(problem, *lengths, s), s);
  return select(mx::expand_dims(mask, {-1, -2}, s), x, 0.0, s);
}

}  // namespace natten
