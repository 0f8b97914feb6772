// Python arguments as C++ values. What does not fit throws std::invalid_argument, which Python sees as ValueError.
#pragma once

#include <nanobind/nanobind.h>

#include <optional>

#include "mlx/array.h"
#include "mlx/utils.h"
#include "natten/neighborhood.h"
#include "ops/validate.h"

namespace natten::bindings {

namespace nb = nanobind;

/// An mlx.core.array; `name` is the argument.
const mx::array& to_array(const Caller& caller, const char* name, nb::handle object);
std::optional<mx::array> to_optional_array(const Caller& caller, const char* name, nb::handle object);

/// Integers by operator.index (no bool), scalar or sequence of them.
PerAxis<std::int64_t> to_integers(const Caller& caller, const char* name, nb::handle object);
/// bool or numpy.bool, scalar or sequence of them.
PerAxis<bool> to_bools(const Caller& caller, const char* name, nb::handle object);
Neighborhood to_neighborhood(const Caller& caller, nb::handle kernel_size, nb::handle stride, nb::handle dilation,
                             nb::handle is_causal, nb::handle gna_stride);

std::optional<double> to_scale(const Caller& caller, nb::handle object);
/// None, mlx.core.Stream or mlx.core.Device.
mx::StreamOrDevice to_stream_or_device(const Caller& caller, nb::handle object);
/// A sequence of non-negative integers that fit MLX's dimensions.
mx::Shape to_shape(const Caller& caller, const char* name, nb::handle object);

}  // namespace natten::bindings
