// What natten_mlx.nn asks of C++: the rules on a module's arguments and input, and masks of padding.
#pragma once

#include <nanobind/nanobind.h>

namespace natten::bindings {

void bind_nn(nanobind::module_& m);

}  // namespace natten::bindings
