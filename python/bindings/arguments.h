// Python arguments as C++ values. What does not fit throws std::invalid_argument, which Python sees as ValueError.
#pragma once

#include <nanobind/nanobind.h>

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "mlx/array.h"
#include "mlx/utils.h"
#include "natten/attention.h"
#include "natten/neighborhood.h"
#include "ops/validate.h"

namespace natten::bindings {

namespace nb = nanobind;

/// repr(object), cut where it is long.
std::string text_of(nb::handle object);

/// An mlx.core.array; `name` is the argument.
const mx::array& to_array(const Caller& caller, const char* name, nb::handle object);
std::optional<mx::array> to_optional_array(const Caller& caller, const char* name, nb::handle object);

/// Arrays of a call in their order. Where one is none, what is wrong with those before it is said first.
struct Input {
  const char* name;
  nb::handle object;
};
template <std::size_t kCount>
std::array<const mx::array*, kCount> to_inputs(const Caller& caller, const Input (&inputs)[kCount]) {
  std::array<const mx::array*, kCount> arrays;
  for (std::size_t i = 0; i < kCount; ++i) {
    if (!nb::isinstance<mx::array>(inputs[i].object)) {
      for (std::size_t j = 0; j < i; ++j) validate_input(caller, inputs[j].name, *arrays[j], mx::Device::cpu);
    }
    arrays[i] = &to_array(caller, inputs[i].name, inputs[i].object);
  }
  return arrays;
}

std::vector<mx::array> to_arrays(const Caller& caller, const char* name, nb::handle object);

/// An integer by operator.index, no bool.
std::int64_t to_integer(const Caller& caller, const char* name, nb::handle object);
/// The same, scalar or sequence of them.
PerAxis<std::int64_t> to_integers(const Caller& caller, const char* name, nb::handle object);
/// bool or numpy.bool, scalar or sequence of them.
PerAxis<bool> to_bools(const Caller& caller, const char* name, nb::handle object);
Neighborhood to_neighborhood(const Caller& caller, nb::handle kernel_size, nb::handle stride, nb::handle dilation,
                             nb::handle is_causal, nb::handle gna_stride, nb::handle is_circular = Py_False);
/// None, or what to_integers() takes.
std::optional<PerAxis<std::int64_t>> to_optional_integers(const Caller& caller, const char* name, nb::handle object);
/// The arguments query_start, key_start and shape.
struct Span {
  nb::handle query_start, key_start, shape;

  template <class Options>
  void set(const Caller& caller, Options& options) const {
    options.query_start = to_integers(caller, "query_start", query_start);
    options.key_start = to_integers(caller, "key_start", key_start);
    options.shape = to_optional_integers(caller, "shape", shape);
  }
};

/// bool or numpy.bool.
bool to_flag(const Caller& caller, const char* name, nb::handle object);
/// What converts to float and is no bool; nothing for anything else.
std::optional<double> to_number(nb::handle object);
std::optional<Scale> to_scale(const Caller& caller, nb::handle object);
/// None, mlx.core.Stream or mlx.core.Device.
mx::StreamOrDevice to_stream_or_device(const Caller& caller, nb::handle object);
/// None is float32.
mx::Dtype to_dtype(const Caller& caller, nb::handle object);
/// A sequence of non-negative integers that fit MLX's dimensions.
mx::Shape to_shape(const Caller& caller, const char* name, nb::handle object);

/// Lengths are evaluated, which may take long: while this lives other threads run (and must, where one feeds them).
class WhileEvaluating {
 public:
  explicit WhileEvaluating(const std::optional<mx::array>& lengths) {
    if (lengths) released_.emplace();
  }

 private:
  std::optional<nb::gil_scoped_release> released_;
};

}  // namespace natten::bindings
