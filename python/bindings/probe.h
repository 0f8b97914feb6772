// Limits of the CPU and control of its threads, for benchmarks.
#pragma once

#include <nanobind/nanobind.h>

namespace natten::bindings {

void bind_probe(nanobind::module_& m);

}  // namespace natten::bindings
