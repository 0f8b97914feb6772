// The part of a padded batch that one sample fills.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "definition/problem.h"

namespace natten::cpu {

struct Sample {
  std::array<Axis, kAxes> axes;  ///< with the sample's own lengths
  std::array<AxisSpan, kAxes> spans;
  bool is_legal;  ///< least_length() <= L_b <= L on every axis; when false every result is zero
};

inline Sample sample_of(const Problem& problem, const std::int32_t* lengths, std::int64_t batch) {
  Sample sample{problem.axes, {problem.span(0), problem.span(1), problem.span(2)}, true};
  if (lengths == nullptr) return sample;
  for (int a = 0; a < kAxes; ++a) {
    Axis& axis = sample.axes[a];
    const std::int64_t length = lengths[batch * kAxes + a];
    sample.is_legal &= least_length(axis) <= length && length <= axis.length;
    axis.length = length;
  }
  return sample;
}

/// The span of an axis without what lies past the sample's length: with lengths, rows are positions of the axis.
inline AxisSpan span_of(const Problem& problem, int a, std::int64_t length) {
  AxisSpan span = problem.span(a);
  if (!problem.has_lengths) return span;
  span.query_rows = std::clamp<std::int64_t>(length - span.query_start, 0, span.query_rows);
  span.key_rows = std::clamp<std::int64_t>(length - span.key_start, 0, span.key_rows);
  return span;
}

}  // namespace natten::cpu
