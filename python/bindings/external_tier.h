// A compiled tier that lives in a Python module (NATTEN_MLX_NANOBIND_MODULE).
#pragma once

#include <nanobind/nanobind.h>

#include "definition/problem.h"
#include "ops/tier.h"

namespace natten::bindings {

namespace nb = nanobind;

/// The problem as a dict of plain Python values, what the functions of an external module get first.
nb::dict to_dict(const Problem& problem);

/// The tier of `module`, which must have the functions of natten_mlx.external's contract; a missing one is
/// std::invalid_argument.
Tier external_tier(nb::handle module);

}  // namespace natten::bindings
