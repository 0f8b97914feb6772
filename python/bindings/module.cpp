// natten_mlx._ext: the C++ API for Python. natten_mlx.functional documents it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "arguments.h"
#include "external_tier.h"
#include "natten/natten.h"
#include "ops/entry.h"
#include "ops/registry.h"
#include "probe.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace natten::bindings {

namespace {

// The names under which errors are reported are the Python functions'.
Caller caller(const std::string& name, int rank, const std::string& lengths_name = "lengths") {
  return {name, rank, lengths_name};
}

std::pair<mx::array, mx::array> bind_attention(const std::string& name, int rank, nb::handle query, nb::handle key,
                                               nb::handle value, nb::handle kernel_size, nb::handle stride,
                                               nb::handle dilation, nb::handle is_causal, nb::handle scale,
                                               nb::handle additional_keys, nb::handle additional_values,
                                               nb::handle gna_stride, nb::handle rpb, nb::handle lengths,
                                               const std::string& lengths_name, nb::handle stream) {
  const Caller c = caller(name, rank, lengths_name);
  const AttentionResult result =
      attention(c, to_array(c, "query", query), to_array(c, "key", key), to_array(c, "value", value),
                to_neighborhood(c, kernel_size, stride, dilation, is_causal, gna_stride),
                {to_scale(c, scale), to_optional_array(c, "additional_keys", additional_keys),
                 to_optional_array(c, "additional_values", additional_values), to_optional_array(c, "rpb", rpb),
                 to_optional_array(c, lengths_name.c_str(), lengths), to_stream_or_device(c, stream)});
  return {result.out, result.lse};
}

mx::array bind_qk(const std::string& name, int rank, nb::handle query, nb::handle key, nb::handle kernel_size,
                  nb::handle stride, nb::handle dilation, nb::handle is_causal, nb::handle scale, nb::handle gna_stride,
                  nb::handle rpb, nb::handle lengths, nb::handle stream) {
  const Caller c = caller(name, rank);
  return qk(c, to_array(c, "query", query), to_array(c, "key", key),
            to_neighborhood(c, kernel_size, stride, dilation, is_causal, gna_stride),
            {to_scale(c, scale), to_optional_array(c, "rpb", rpb), to_optional_array(c, "lengths", lengths),
             to_stream_or_device(c, stream)});
}

mx::array bind_av(const std::string& name, int rank, nb::handle attn, nb::handle value, nb::handle kernel_size,
                  nb::handle stride, nb::handle dilation, nb::handle is_causal, nb::handle gna_stride,
                  nb::handle lengths, nb::handle stream) {
  const Caller c = caller(name, rank);
  return av(c, to_array(c, "attn", attn), to_array(c, "value", value),
            to_neighborhood(c, kernel_size, stride, dilation, is_causal, gna_stride),
            {to_optional_array(c, "lengths", lengths), to_stream_or_device(c, stream)});
}

std::vector<mx::array> to_array_list(const char* name, nb::handle object) {
  const Caller c = caller("merge_attentions", 0);
  if (!PySequence_Check(object.ptr())) fail(c, std::string(name) + " must be a sequence of arrays");
  std::vector<mx::array> arrays;
  for (nb::handle item : nb::borrow(object)) arrays.push_back(to_array(c, name, item));
  return arrays;
}

nb::dict support_dict() {
  nb::dict matrix;
  for (const auto& [name, row] : support_matrix()) {
    nb::dict d;
    d["available"] = row.available;
    d["reason"] = row.reason;
    d["forward"] = row.forward;
    d["backward"] = row.backward;
    d["fusion"] = row.fusion;
    d["varlen"] = row.varlen;
    d["devices"] = row.devices;
    d["dtypes"] = row.dtypes;
    d["constraints"] = row.constraints;
    matrix[name.c_str()] = d;
  }
  return matrix;
}

nb::dict bind_explain(const std::string& op, nb::handle query, nb::handle key, nb::handle value, mx::Dtype query_dtype,
                      mx::Dtype key_dtype, mx::Dtype value_dtype, nb::handle kernel_size, nb::handle stride,
                      nb::handle dilation, nb::handle is_causal, nb::handle gna_stride, bool has_rpb, bool has_lengths,
                      nb::handle stream) {
  const Caller c = caller("explain", 0);
  CallDescription call;
  call.op = op;
  call.query = to_shape(c, "query", query);
  call.key = to_shape(c, "key", key);
  call.value = to_shape(c, "value", value);
  call.query_dtype = query_dtype;
  call.key_dtype = key_dtype;
  call.value_dtype = value_dtype;
  call.has_rpb = has_rpb;
  call.has_lengths = has_lengths;
  call.stream = to_stream_or_device(c, stream);
  const Explanation e = explain(call, to_neighborhood(c, kernel_size, stride, dilation, is_causal, gna_stride));
  nb::dict d;
  d["tier"] = e.tier;
  d["kernel"] = e.kernel;
  d["tile"] = e.tile;
  d["cost"] = e.cost;
  d["declined"] = e.declined;
  return d;
}

Axis window_axis(std::int64_t index, std::int64_t length, std::int64_t kernel_size, std::int64_t stride,
                 std::int64_t dilation, bool is_causal, std::int64_t gna_stride) {
  const Axis axis{length, kernel_size, stride, dilation, gna_stride, is_causal};
  if (kernel_size < 1 || dilation < 1 || kernel_size > length || dilation > length / kernel_size || stride < 1 ||
      stride > kernel_size || gna_stride < 1 || gna_stride > kernel_size) {
    throw std::invalid_argument(
        "[window] expected 1 <= kernel_size, kernel_size * dilation <= length and strides from 1 to kernel_size, got "
        "length=" +
        std::to_string(length) + ", kernel_size=" + std::to_string(kernel_size) + ", dilation=" +
        std::to_string(dilation) + ", stride=" + std::to_string(stride) + ", gna_stride=" + std::to_string(gna_stride));
  }
  if (index < 0 || index >= length) {
    throw std::invalid_argument("[window] index must be from 0 to length - 1 = " + std::to_string(length - 1) +
                                ", got " + std::to_string(index));
  }
  return axis;
}

// Keys that the query at `index` attends on one axis, as absolute positions.
std::vector<std::int64_t> window_keys(std::int64_t index, std::int64_t length, std::int64_t kernel_size,
                                      std::int64_t stride, std::int64_t dilation, bool is_causal,
                                      std::int64_t gna_stride) {
  const Axis axis = window_axis(index, length, kernel_size, stride, dilation, is_causal, gna_stride);
  const std::int64_t group = index % dilation;
  const Range<std::int64_t> keys = window(axis, index / dilation, group_length(length, dilation, group));
  std::vector<std::int64_t> result;
  for (std::int64_t place = keys.start; place < keys.end; ++place) result.push_back(place * dilation + group);
  return result;
}

// (first key, first index into the rpb axis) of the query at `index`, not causal.
std::pair<std::int64_t, std::int64_t> window_start(std::int64_t index, std::int64_t length, std::int64_t kernel_size,
                                                   std::int64_t dilation) {
  const Axis axis = window_axis(index, length, kernel_size, 1, dilation, false, 1);
  const std::int64_t group = index % dilation, place = index / dilation;
  const std::int64_t start = window(axis, place, group_length(length, dilation, group)).start;
  return {start * dilation + group, rpb_index(axis, place, start)};
}

void log_fallback(const std::string& message) {
  const nb::gil_scoped_acquire gil;
  nb::module_::import_("logging").attr("getLogger")("natten_mlx").attr("warning")("%s", message);
}

}  // namespace

}  // namespace natten::bindings

NB_MODULE(_ext, m) {
  using namespace natten;
  using namespace natten::bindings;
  nb::module_::import_("mlx.core");  // registers mx.array, Stream, Device and Dtype
  set_fallback_logger(log_fallback);
  m.attr("__version__") = NATTEN_MLX_VERSION;

  m.def("attention", bind_attention, "name"_a, "rank"_a, "query"_a.none(), "key"_a.none(), "value"_a.none(),
        "kernel_size"_a.none(), "stride"_a.none(), "dilation"_a.none(), "is_causal"_a.none(), "scale"_a.none(),
        "additional_keys"_a.none(), "additional_values"_a.none(), "gna_stride"_a.none(), "rpb"_a.none(),
        "lengths"_a.none(), "lengths_name"_a, "stream"_a.none(), "Neighborhood attention -> (out, lse).");
  m.def("qk", bind_qk, "name"_a, "rank"_a, "query"_a.none(), "key"_a.none(), "kernel_size"_a.none(), "stride"_a.none(),
        "dilation"_a.none(), "is_causal"_a.none(), "scale"_a.none(), "gna_stride"_a.none(), "rpb"_a.none(),
        "lengths"_a.none(), "stream"_a.none(), "Logits of the split form.");
  m.def("av", bind_av, "name"_a, "rank"_a, "attn"_a.none(), "value"_a.none(), "kernel_size"_a.none(), "stride"_a.none(),
        "dilation"_a.none(), "is_causal"_a.none(), "gna_stride"_a.none(), "lengths"_a.none(), "stream"_a.none(),
        "Weighted values of the split form.");
  m.def(
      "merge",
      [](nb::handle outputs, nb::handle lse_tensors) {
        const AttentionResult r = merge(to_array_list("outputs", outputs), to_array_list("lse_tensors", lse_tensors));
        return std::pair(r.out, r.lse);
      },
      "outputs"_a, "lse_tensors"_a, "Joins partial attentions -> (out, lse).");

  m.def(
      "check_neighborhood",
      [](const std::string& name, int rank, nb::handle kernel_size, nb::handle stride, nb::handle dilation,
         nb::handle is_causal, nb::handle gna_stride) {
        const Caller c = caller(name, rank);
        validate_neighborhood(c, to_neighborhood(c, kernel_size, stride, dilation, is_causal, gna_stride));
      },
      "name"_a, "rank"_a, "kernel_size"_a.none(), "stride"_a.none(), "dilation"_a.none(), "is_causal"_a.none(),
      "gna_stride"_a.none(), "Raises ValueError for parameters that no array fits.");
  m.def(
      "padding_masks",
      [](const std::string& name, int rank, nb::handle shape, nb::handle lengths, const std::string& lengths_name,
         nb::handle kernel_size, nb::handle stride, nb::handle dilation) {
        const Caller c = caller(name, rank, lengths_name);
        return padding_masks(c, to_shape(c, "input shape", shape), to_array(c, lengths_name.c_str(), lengths),
                             {to_integers(c, "kernel_size", kernel_size), to_integers(c, "stride", stride),
                              to_integers(c, "dilation", dilation)},
                             {});
      },
      "name"_a, "rank"_a, "shape"_a, "lengths"_a, "lengths_name"_a, "kernel_size"_a.none(), "stride"_a.none(),
      "dilation"_a.none(), "Masks of tokens and of queries that are not padding.");

  m.def("set_backend", &set_backend, "name"_a);
  m.def("get_backend", &get_backend);
  m.def("support_matrix", &support_dict);
  m.def(
      "kernel_cache_info",
      [] {
        const KernelCacheUsage usage = kernel_cache_usage();
        nb::dict d;
        d["kernels"] = usage.kernels;
        d["bytes"] = usage.bytes;
        d["limit"] = usage.limit;
        return d;
      },
      "Kernels compiled at run time that are kept: how many, bytes of their text and plans, limit in bytes.");
  m.def("clear_cache", &clear_cache, "Forgets the kernels compiled at run time.");
  m.def("explain", bind_explain, "op"_a, "query"_a.none(), "key"_a.none(), "value"_a.none(), "query_dtype"_a,
        "key_dtype"_a, "value_dtype"_a, "kernel_size"_a.none(), "stride"_a.none(), "dilation"_a.none(),
        "is_causal"_a.none(), "gna_stride"_a.none(), "has_rpb"_a, "has_lengths"_a, "stream"_a.none());
  m.def(
      "load_external_tier", [](nb::handle module) { replace_compiled_tier(external_tier(module)); }, "module"_a,
      "Replaces the compiled tier by the functions of a module.");

  m.def("window_keys", &window_keys, "index"_a, "length"_a, "kernel_size"_a, "stride"_a = 1, "dilation"_a = 1,
        "is_causal"_a = false, "gna_stride"_a = 1, "Keys of one query on one axis.");
  m.def("window_start", &window_start, "index"_a, "length"_a, "kernel_size"_a, "dilation"_a,
        "First key of one query on one axis, and its index into the rpb axis.");

  bind_probe(m);
}
