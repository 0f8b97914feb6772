// Adds what came back from neighbors to some rows of a gradient, in place.
#pragma once

#include <vector>

#include "distributed/split.h"
#include "mlx/array.h"
#include "mlx/stream.h"

namespace natten::distributed {

namespace mx = mlx::core;

/// `sum` with `addends[i]` added to its rows `rows[i]` of `axis`, in this order; empty ones are
/// skipped. Of the same dtype. On a CPU without a copy of `sum`, where nobody else holds it.
mx::array add_rows(const mx::array& sum, const std::vector<mx::array>& addends, const std::vector<Rows>& rows, int axis,
                   mx::Stream s);

}  // namespace natten::distributed
