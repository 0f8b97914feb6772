// The window arithmetic on host integers, for natten_mlx.utils.window and pictures.
#pragma once

#include <nanobind/nanobind.h>

namespace natten::bindings {

void bind_window(nanobind::module_& m);

}  // namespace natten::bindings
