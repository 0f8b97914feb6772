#include "probe.h"

#include <nanobind/stl/string.h>

#include "native/cpu/target.h"
#include "native/cpu/thread_pool.h"
#include "native/result_memory.h"
#include "probe/probe.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace natten::bindings {

void bind_probe(nb::module_& m) {
  using WithoutGil = nb::call_guard<nb::gil_scoped_release>;
  m.def("fma_rate", &cpu::fma_rate, "rounds"_a, WithoutGil(),
        "Float operations per second of one burst of multiply-adds in registers, on cpu_threads() threads.");
  m.def("copy_rate", &cpu::copy_rate, "bytes"_a, "repeats"_a, WithoutGil(),
        "Bytes read and written per second when memory is copied on cpu_threads() threads, the best of `repeats`.");
  m.def("float_lanes", &cpu::float_lanes, "float32 lanes of a vector of cpu_target().");
  m.def("cpu_target", &cpu::cpu_target, "The SIMD target that the CPU kernels use.");
  m.def("cache_limit", &result_cache_limit, "Bytes of memory of results that are kept at most.");
  m.def("cpu_threads", &cpu::thread_count, "Threads that the CPU kernels use.");
  m.def("set_cpu_threads", &cpu::set_thread_count, "count"_a,
        "Makes the CPU kernels use `count` threads, for small calls too; 0 returns to the default.");
}

}  // namespace natten::bindings
