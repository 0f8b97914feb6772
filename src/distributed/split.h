// Views of tensors along an axis, with a gradient that adds in place instead of padding every view to the whole.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "mlx/array.h"
#include "mlx/stream.h"

namespace natten::distributed {

namespace mx = mlx::core;

/// Rows [start, end) of a tensor.
using Rows = std::pair<std::int64_t, std::int64_t>;

struct Views {
  std::vector<mx::array> whole;               ///< by tensor
  std::vector<std::vector<mx::array>> parts;  ///< by part, then tensor
  /// One element that depends on all tensors; the gradients of the tensors come after its own.
  mx::array anchor;
};

/// Rows of `axis` of each tensor, for each of `parts`. Nothing is copied.
Views split(const std::vector<mx::array>& tensors, int axis, const std::vector<Rows>& parts, mx::Stream s);

}  // namespace natten::distributed
