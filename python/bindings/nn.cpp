#include "nn.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "api/entry.h"
#include "arguments.h"
#include "graph/numerics.h"
#include "graph/slices.h"
#include "graph/trace.h"
#include "mlx/device.h"
#include "mlx/ops.h"
#include "mlx/utils.h"

namespace natten::bindings {

using namespace nb::literals;

namespace {

constexpr std::int64_t kMaxDim = std::numeric_limits<mx::ShapeElem>::max();

std::int64_t to_count(const Caller& caller, const std::string& name, nb::handle object, std::int64_t largest) {
  if (PyBool_Check(object.ptr()) || !PyIndex_Check(object.ptr())) {
    fail(caller, name + " must be a positive int, got " + text_of(object));
  }
  const std::int64_t count = to_integer(caller, name.c_str(), object);
  if (count < 1) fail(caller, name + " must be positive, got " + text_of(object));
  if (count > largest) fail(caller, name + " must be at most " + std::to_string(largest) + ", got " + text_of(object));
  return count;
}

void check_divides(const Caller& caller, const char* name, std::int64_t value, const char* by, std::int64_t divisor) {
  if (value % divisor == 0) return;
  fail(caller, std::string(name) + " must be divisible by " + by + ", got " + std::to_string(value) + " and " +
                   std::to_string(divisor));
}

void check_rate(const Caller& caller, const std::string& name, nb::handle object) {
  const std::optional<double> rate = to_number(object);
  if (!rate || !(*rate >= 0.0 && *rate < 1.0)) {
    fail(caller, name + " must be a number in [0, 1), got " + text_of(object));
  }
}

// A number, or an array that is learned: of one element or of one per head.
void check_scale(const Caller& caller, nb::handle object, std::int64_t heads) {
  if (nb::isinstance<mx::array>(object)) {
    const mx::array& scale = to_array(caller, "qk_scale", object);
    validate_float(caller, "qk_scale", scale.dtype(), mx::default_device());
    if (scale.size() == 1 || scale.shape() == mx::Shape{static_cast<int>(heads)}) return;
    fail(caller, "qk_scale must have one element or shape [" + std::to_string(heads) + "], got shape " +
                     to_string(scale.shape()));
  }
  const std::optional<double> scale = to_number(object);
  if (!scale) fail(caller, "qk_scale must be a number, an array or None, got " + text_of(object));
  validate_scale(caller, "qk_scale", *scale);
}

// Shape of a table [heads, 2K-1, ...]
nb::tuple rpb_shape(const Caller& caller, std::int64_t heads, const PerAxis<std::int64_t>& kernel_size) {
  nb::list shape;
  shape.append(heads);
  for (int axis = 0; axis < caller.rank; ++axis) {
    if (kernel_size[axis] > kMaxDim / 2) {
      fail(caller, "kernel_size must be at most " + std::to_string(kMaxDim / 2) + " with rel_pos_bias, got " +
                       std::to_string(kernel_size[axis]));
    }
    shape.append(2 * kernel_size[axis] - 1);
  }
  return nb::tuple(shape);
}

// -> (embed_dim, num_heads, num_kv_heads, shape of rpb) as plain integers.
nb::tuple check_module(const std::string& name, int rank, nb::handle embed_dim, nb::handle num_heads,
                       nb::handle kernel_size, nb::handle stride, nb::handle dilation, nb::handle is_causal,
                       nb::handle num_kv_heads, nb::handle qkv_bias, nb::handle qk_scale, nb::handle attn_drop,
                       nb::handle proj_drop, nb::handle gna_stride, nb::handle rel_pos_bias, nb::handle pad_input,
                       nb::handle is_circular) {
  const Caller c{name, rank};
  const std::int64_t dim = to_count(c, "embed_dim", embed_dim, kMaxDim / 3);  // qkv.weight has three times the rows
  const std::int64_t heads = to_count(c, "num_heads", num_heads, kMaxDim);
  const Neighborhood neighborhood =
      to_neighborhood(c, kernel_size, stride, dilation, is_causal, gna_stride, is_circular);
  validate_neighborhood(c, neighborhood);
  const std::int64_t kv_heads = num_kv_heads.is_none() ? heads : to_count(c, "num_kv_heads", num_kv_heads, kMaxDim);
  check_divides(c, "embed_dim", dim, "num_heads", heads);
  check_divides(c, "num_heads", heads, "num_kv_heads", kv_heads);
  to_flag(c, "qkv_bias", qkv_bias);
  if (!qk_scale.is_none()) check_scale(c, qk_scale, heads);
  check_rate(c, "attn_drop", attn_drop);
  check_rate(c, "proj_drop", proj_drop);
  to_flag(c, "pad_input", pad_input);
  const bool has_rpb = to_flag(c, "rel_pos_bias", rel_pos_bias);
  return nb::make_tuple(dim, heads, kv_heads, has_rpb ? rpb_shape(c, heads, neighborhood.kernel_size) : nb::tuple());
}

void check_module_input(const std::string& name, int rank, nb::handle x, int embed_dim) {
  const Caller c{name, rank};
  const mx::array& input = to_array(c, "x", x);
  const int axes = static_cast<int>(input.ndim());
  if (axes != rank + 2) {
    const char* layout = rank == 1 ? "[B, L, C]" : rank == 2 ? "[B, H, W, C]" : "[B, D, H, W, C]";
    fail(c, std::string("Expected input shape ") + layout + ", got " + to_string(input.shape()));
  }
  if (input.shape(-1) != embed_dim) {
    fail(c,
         "channel dim must be embed_dim = " + std::to_string(embed_dim) + ", got " + std::to_string(input.shape(-1)));
  }
  validate_float(c, "x", input.dtype(), mx::default_device());
}

// A Python function for a node that may be dropped by any thread.
std::function<std::vector<mx::array>(const std::vector<mx::array>&)> to_function(nb::object function) {
  const std::shared_ptr<nb::object> held(new nb::object(std::move(function)), [](nb::object* object) {
    if (!Py_IsInitialized()) return;
    const nb::gil_scoped_acquire gil;
    delete object;
  });
  return [held](const std::vector<mx::array>& inputs) {
    const nb::gil_scoped_acquire gil;
    return nb::cast<std::vector<mx::array>>((*held)(inputs));
  };
}

std::optional<std::vector<mx::array>> bind_decoding_step(const std::string& name, int rank,
                                                         std::vector<mx::array> inputs, nb::handle kernel_size,
                                                         nb::handle stride, nb::handle dilation, nb::handle is_causal,
                                                         nb::handle gna_stride, nb::handle is_circular,
                                                         nb::handle scale, nb::object composed) {
  const Caller c{name, rank};
  return decoding_step(c, std::move(inputs),
                       to_neighborhood(c, kernel_size, stride, dilation, is_causal, gna_stride, is_circular),
                       to_scale(c, scale), to_function(std::move(composed)));
}

std::pair<mx::array, mx::array> bind_padding_masks(const std::string& name, int rank, nb::handle shape,
                                                   nb::handle lengths, const std::string& lengths_name,
                                                   nb::handle kernel_size, nb::handle stride, nb::handle dilation,
                                                   nb::handle is_causal, nb::handle gna_stride,
                                                   nb::handle is_circular) {
  const Caller c{name, rank, lengths_name};
  const mx::Shape input = to_shape(c, "input shape", shape);
  const mx::array& sizes = to_array(c, lengths_name.c_str(), lengths);
  const Neighborhood neighborhood =
      to_neighborhood(c, kernel_size, stride, dilation, is_causal, gna_stride, is_circular);
  const WhileEvaluating released(sizes);
  return padding_masks(c, input, sizes, neighborhood, {});
}

}  // namespace

void bind_nn(nb::module_& m) {
  m.def("check_module", check_module, "name"_a, "rank"_a, "embed_dim"_a.none(), "num_heads"_a.none(),
        "kernel_size"_a.none(), "stride"_a.none(), "dilation"_a.none(), "is_causal"_a.none(), "num_kv_heads"_a.none(),
        "qkv_bias"_a.none(), "qk_scale"_a.none(), "attn_drop"_a.none(), "proj_drop"_a.none(), "gna_stride"_a.none(),
        "rel_pos_bias"_a.none(), "pad_input"_a.none(), "is_circular"_a.none(),
        "Raises ValueError for arguments of a module that do not fit; -> (embed_dim, num_heads, num_kv_heads, rpb's "
        "shape).");
  m.def("check_module_input", check_module_input, "name"_a, "rank"_a, "x"_a.none(), "embed_dim"_a,
        "Raises ValueError for an input that is no float array [B, spatial..., embed_dim].");
  m.def("padding_masks", bind_padding_masks, "name"_a, "rank"_a, "shape"_a, "lengths"_a.none(), "lengths_name"_a,
        "kernel_size"_a.none(), "stride"_a.none(), "dilation"_a.none(), "is_causal"_a.none(), "gna_stride"_a.none(),
        "is_circular"_a.none(), "Masks of tokens and of queries that are not padding.");
  m.def(
      "decoding_step", bind_decoding_step, "name"_a, "rank"_a, "inputs"_a, "kernel_size"_a.none(), "stride"_a.none(),
      "dilation"_a.none(), "is_causal"_a.none(), "gna_stride"_a.none(), "is_circular"_a.none(), "scale"_a.none(),
      "composed"_a,
      "query, key, value, the rings of keys and values, and the position -> out, the rings and the position then; None "
      "where no kernel has it. `composed` gives the first three of other inputs, as operations with derivatives.");
  m.def("is_concrete", is_concrete, "x"_a, "Whether x depends on no placeholder of a trace.");
  m.def(
      "slice_from",
      [](const mx::array& x, const mx::array& start, const std::vector<int>& axes, const std::vector<int>& lengths) {
        return slice_from(x, start, axes, {lengths.begin(), lengths.end()}, mx::to_stream({}));
      },
      "x"_a, "start"_a, "axes"_a, "lengths"_a, "mx.slice for mx.vmap in every combination.");
  m.def(
      "slice_updated",
      [](const mx::array& x, const mx::array& update, const mx::array& start, const std::vector<int>& axes) {
        return slice_updated(x, update, start, axes, mx::to_stream({}));
      },
      "x"_a, "update"_a, "start"_a, "axes"_a, "mx.slice_update for mx.vmap in every combination.");
  m.def(
      "zero_outside",
      [](const mx::array& mask, const mx::array& x) {
        const mx::Stream s = mx::to_stream({});
        return select(mx::expand_dims(mask, -1, s), x, 0.0, s);
      },
      "mask"_a, "x"_a, "x [..., C] where mask [...], else 0: no NaN gets through it, forward or backward.");
}

}  // namespace natten::bindings
