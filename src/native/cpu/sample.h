// The part of a padded batch that one sample fills.
#pragma once

#include <array>
#include <cstdint>

#include "definition/problem.h"

namespace natten::cpu {

struct Sample {
  std::array<Axis, kAxes> axes;  ///< with the sample's own lengths
  bool is_legal;                 ///< K * d <= L_b <= L on every axis; when false every result is zero
};

inline Sample sample_of(const Problem& problem, const std::int32_t* lengths, std::int64_t batch) {
  Sample sample{problem.axes, true};
  if (lengths == nullptr) return sample;
  for (int a = 0; a < kAxes; ++a) {
    Axis& axis = sample.axes[a];
    const std::int64_t length = lengths[batch * kAxes + a];
    sample.is_legal &= axis.kernel_size * axis.dilation <= length && length <= axis.length;
    axis.length = length;
  }
  return sample;
}

}  // namespace natten::cpu
