// vmap of an operation: the mapped axis becomes more batch or more heads.
#pragma once

#include <utility>
#include <vector>

#include "ops/differentiable.h"

namespace natten {

/// The mapped axis becomes more batch, or more heads where a bias takes part; in several calls where one would be
/// larger than the tier takes. The operation over the mapped axes (-1: not mapped) -> outputs and their mapped axes.
std::pair<Arrays, std::vector<int>> map_folded(const Operation& operation, const Arrays& inputs,
                                               const std::vector<int>& axes, mx::Stream s);

}  // namespace natten
