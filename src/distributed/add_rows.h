// Adds what came back from neighbors to some rows of a gradient, in place.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "mlx/array.h"
#include "mlx/stream.h"

namespace natten::distributed {

namespace mx = mlx::core;

/// `sum` with `addends[i]` added to its rows [first, second) = `rows[i]` of `axis`, in this order; empty ones are
/// skipped. Of the same dtype. On a CPU without a copy of `sum`, where nobody else holds it.
mx::array add_rows(const mx::array& sum, const std::vector<mx::array>& addends,
                   const std::vector<std::pair<std::int64_t, std::int64_t>>& rows, int axis, mx::Stream s);

}  // namespace natten::distributed
