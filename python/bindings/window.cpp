#include "window.h"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "definition/window.h"

namespace natten::bindings {

using namespace nb::literals;

namespace {

std::int64_t integer(const char* name, nb::handle object) {
  return to_integer({"window", 1}, name, object);
}

void check_axis(const Axis& a) {
  const auto fits = [&] {
    if (a.is_causal) return !a.is_circular;
    if (a.kernel_size > a.length || a.dilation > a.length / a.kernel_size) return false;
    return !a.is_circular || (a.length % a.dilation == 0 && a.length / a.dilation % a.gna_stride == 0);
  };
  if (a.kernel_size >= 1 && a.dilation >= 1 && a.stride >= 1 && a.stride <= a.kernel_size && a.gna_stride >= 1 &&
      a.gna_stride <= a.kernel_size && a.length >= 1 && fits()) {
    return;
  }
  throw std::invalid_argument(
      "[window] expected 1 <= kernel_size, kernel_size * dilation <= length and strides from 1 to kernel_size, got "
      "length=" +
      std::to_string(a.length) + ", kernel_size=" + std::to_string(a.kernel_size) +
      ", dilation=" + std::to_string(a.dilation) + ", stride=" + std::to_string(a.stride) +
      ", gna_stride=" + std::to_string(a.gna_stride));
}

void check_index(std::int64_t index, std::int64_t length) {
  if (index >= 0 && index < length) return;
  throw std::invalid_argument("[window] index must be from 0 to length - 1 = " + std::to_string(length - 1) + ", got " +
                              std::to_string(index));
}

// Keys that the query at `index` attends on one axis, as absolute positions in the order of their slots.
std::vector<std::int64_t> window_keys(std::int64_t index, std::int64_t length, std::int64_t kernel_size,
                                      std::int64_t stride, std::int64_t dilation, bool is_causal,
                                      std::int64_t gna_stride, bool is_circular) {
  const Axis axis{length, kernel_size, stride, dilation, gna_stride, is_causal, is_circular};
  check_axis(axis);
  check_index(index, length);
  const std::int64_t group = index % dilation;
  const Range<std::int64_t> keys = window(axis, index / dilation, group_length(length, dilation, group));
  std::vector<std::int64_t> result;
  for (std::int64_t place = keys.start; place < keys.end; ++place) {
    result.push_back((place * dilation + group + length) % length);  // unwrapped on a circular axis
  }
  return result;
}

// (first key, first index into the rpb axis) of the query at `index`, not causal.
std::pair<std::int64_t, std::int64_t> window_start(nb::handle index_object, nb::handle length_object,
                                                   nb::handle kernel_size_object, nb::handle dilation_object) {
  const std::int64_t index = integer("index", index_object), length = integer("length", length_object);
  const std::int64_t kernel_size = integer("kernel_size", kernel_size_object);
  const std::int64_t dilation = integer("dilation", dilation_object);
  const Axis axis{length, kernel_size, 1, dilation, 1, false};
  check_axis(axis);
  check_index(index, length);
  const std::int64_t group = index % dilation, place = index / dilation;
  const std::int64_t start = window(axis, place, group_length(length, dilation, group)).start;
  return {start * dilation + group, rpb_index(axis, place, start)};
}

// One past the last token that a window from `start` may reach. Nothing overflows on the way.
std::int64_t window_end(nb::handle start_object, nb::handle length_object, nb::handle kernel_size_object,
                        nb::handle dilation_object) {
  const std::int64_t start = integer("start_index", start_object), length = integer("length", length_object);
  const std::int64_t kernel_size = integer("kernel_size", kernel_size_object);
  const std::int64_t dilation = integer("dilation", dilation_object);
  return static_cast<std::int64_t>(std::min<__int128>(length, start + static_cast<__int128>(kernel_size) * dilation));
}

}  // namespace

void bind_window(nb::module_& m) {
  m.def("window_keys", &window_keys, "index"_a, "length"_a, "kernel_size"_a, "stride"_a = 1, "dilation"_a = 1,
        "is_causal"_a = false, "gna_stride"_a = 1, "is_circular"_a = false,
        "Keys of one query on one axis, in the order of their slots.");
  m.def("window_start", &window_start, "index"_a.none(), "length"_a.none(), "kernel_size"_a.none(), "dilation"_a.none(),
        "First key of one query on one axis, and its index into the rpb axis.");
  m.def("window_end", &window_end, "start_index"_a.none(), "length"_a.none(), "kernel_size"_a.none(),
        "dilation"_a.none(), "One past the last token that the window from `start_index` may reach.");
}

}  // namespace natten::bindings
