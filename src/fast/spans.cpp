#include "fast/spans.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

namespace natten::fast {

namespace {

using Wide = __int128;  // of products of numbers up to 2^60
constexpr Wide kMost = std::numeric_limits<std::int64_t>::max();

std::int64_t floored(Wide value, std::int64_t of) {
  const Wide rest = value % of;
  return static_cast<std::int64_t>(value - (rest < 0 ? rest + of : rest));
}

void bring_near(Axis& axis, AxisSpan& span) {
  const bool is_part = axis.is_circular && span.key_rows < axis.length;  // no window goes around
  if (axis.is_circular && !is_part) return;
  // So far from a border no window of the span is shifted or cut by it.
  const Wide margin = Wide(axis.gna_stride + axis.kernel_size) * axis.dilation;
  const Wide first = std::min(Wide(span.query_start) - margin, Wide(span.key_start));
  std::int64_t shift = 0;
  if (is_part || first > 0) {  // then stride, dilation and their product with gna_stride are at most a position
    shift = floored(first, std::lcm(axis.dilation * axis.gna_stride, axis.stride));
  }
  axis.is_circular = false;
  span.query_start -= shift;
  span.key_start -= shift;
  const Wide end = std::max(Wide(span.query_start + span.query_rows) + margin, Wide(span.key_start + span.key_rows));
  axis.length =
      is_part ? static_cast<std::int64_t>(end) : static_cast<std::int64_t>(std::min(end, Wide(axis.length - shift)));
}

}  // namespace

Problem nearest(Problem p) {
  if (!p.spans || p.has_lengths) return p;
  for (int a = 0; a < kAxes; ++a) bring_near(p.axes[a], (*p.spans)[a]);
  return p;
}

AxisRows rows_of(const Problem& p, int axis) {
  const AxisSpan span = p.span(axis);
  const std::int64_t first = query_index(p.axes[axis], span.query_start);
  return {static_cast<int>(first),
          static_cast<int>(p.queries(axis)),
          static_cast<int>(first * p.axes[axis].stride - span.query_start),
          static_cast<int>(span.query_rows),
          static_cast<int>(span.key_start),
          static_cast<int>(span.key_rows)};
}

std::array<std::int32_t, kAxes * kSpanNumbers> span_numbers(const Problem& p) {
  std::array<std::int32_t, kAxes * kSpanNumbers> numbers;
  for (int a = 0; a < kAxes; ++a) {
    const AxisRows rows = rows_of(p, a);
    static_assert(sizeof rows == (kSpanNumbers - 1) * sizeof numbers[0]);
    numbers[a * kSpanNumbers] = static_cast<std::int32_t>(p.axes[a].length);
    std::memcpy(&numbers[a * kSpanNumbers + 1], &rows, sizeof rows);
  }
  return numbers;
}

std::int64_t largest_position(const Problem& p) {
  std::int64_t most = 0;
  for (const Axis& axis : p.axes) {
    most = std::max({most, axis.length, axis.kernel_size, axis.dilation});
    // How far apart the queries of a group are, which on a causal axis may be further than the axis is long.
    const Wide step = Wide(axis.dilation / std::gcd(axis.dilation, axis.stride)) * axis.stride;
    most = static_cast<std::int64_t>(std::min(kMost, std::max(step, Wide(most))));
    if (axis.is_circular) most = std::max(most, axis.length * 4);  // unwrapped ones, and turns (bodies/groups.h)
  }
  return most;
}

}  // namespace natten::fast
