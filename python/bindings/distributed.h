// What natten_mlx.distributed and the command `natten-mlx plan` call.
#pragma once

#include <nanobind/nanobind.h>

namespace natten::bindings {

void bind_distributed(nanobind::module_& m);

}  // namespace natten::bindings
