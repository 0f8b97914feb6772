// Spans as kernels take them: near the start of their axis, as 32-bit numbers.
#pragma once

#include <array>
#include <cstdint>

#include "definition/problem.h"
// After the window arithmetic that it builds on.
#include "fast/bodies/groups.h"

namespace natten::fast {

/// The same call with spans as far to the left, and axes as short, as leave every window as it is: positions of any
/// size become small ones, and so do those of each step of decoding. A circular axis of which the rows are a part with
/// their halo becomes one that is not. Axes that samples may shorten stay.
Problem nearest(Problem problem);

/// Of a problem whose positions are near; a family (plan.h) has rows as well.
AxisRows rows_of(const Problem& problem, int axis);

/// What `spans_of` (bodies/tile.h) reads: per axis its length, then the fields of AxisRows in their order.
inline constexpr int kSpanNumbers = 7;
std::array<std::int32_t, kAxes * kSpanNumbers> span_numbers(const Problem& problem);

/// The largest position in any of a problem's axes.
std::int64_t largest_position(const Problem& problem);

}  // namespace natten::fast
