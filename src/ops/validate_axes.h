// The part of validation that concerns axes: windows, where the arrays lie on the whole axes, lengths of samples.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <sstream>
#include <string>

#include "ops/validate.h"

namespace natten {

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

/// Positions are 64-bit: sums of a few of them, and of windows, must not overflow.
inline constexpr std::int64_t kMostPositions = std::int64_t{1} << 60;

void check_placement(const Caller& caller, const Placement& placement);
/// Whether the arrays hold whole axes, of the lengths that they have.
bool is_whole(const Caller& caller, const Placement& placement);

/// The axes of `problem` have the lengths of the placement, else `shape[1..rank]`.
void set_axes(const Caller& caller, const mx::Shape& shape, const Neighborhood& neighborhood,
              const Placement& placement, Problem& problem);

using Rows = std::array<std::int64_t, kAxes>;  ///< of the caller's axes
Rows rows_of(const Caller& caller, const mx::Shape& shape);
/// Query rows of a span whose computed queries are those of attn: up to the last of them, or to the end of the axis.
Rows query_rows_of_attn(const Caller& caller, const mx::Shape& attn, const mx::Shape& value, const Placement& placement,
                        const Problem& problem);
void set_spans(const Caller& caller, const Placement& placement, const Rows& query, const Rows& key, bool has_lengths,
               Problem& problem);

/// A window never holds more keys than there are: that many, rounded up so that few kernels differ, do for a causal
/// kernel that is longer. Logits have a slot, and a bias an entry, for each of its keys.
void shorten_causal_windows(Problem& problem);

/// A causal axis that is shorter than its dilation has groups of one token, whatever the dilation, and a window of one
/// key has none: kernels make something of each group. Rounded up as well.
void shorten_dilations(Problem& problem);

void set_lengths(const Caller& caller, const std::optional<Spec>& lengths, Problem& problem);

}  // namespace natten
