// natten_mlx._ext: the C++ API for Python. natten_mlx.functional documents it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "api/entry.h"
#include "api/registry.h"
#include "arguments.h"
#include "distributed.h"
#include "external_tier.h"
#include "natten/natten.h"
#include "nn.h"
#include "probe.h"
#include "window.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace natten::bindings {

namespace {

// The names under which errors are reported are the Python functions'.
Caller caller(const std::string& name, int rank, const std::string& lengths_name = "lengths") {
  return {name, rank, lengths_name};
}

// A result as the functions of Python return it.
nb::object to_result(const AttentionResult& result, bool with_lse) {
  if (!with_lse) return nb::cast(result.out);
  return nb::make_tuple(result.out, result.lse);
}

AttentionResult evaluated(const Caller& c, const mx::array& query, const mx::array& key, const mx::array& value,
                          const Neighborhood& neighborhood, const AttentionOptions& options) {
  const WhileEvaluating released(options.lengths);
  return attention(c, query, key, value, neighborhood, options);
}

// Arguments are converted one after the other, so that the first wrong one is named.
nb::object bind_attention(const std::string& name, int rank, nb::handle query, nb::handle key, nb::handle value,
                          nb::handle kernel_size, nb::handle stride, nb::handle dilation, nb::handle is_causal,
                          nb::handle scale, nb::handle return_lse, nb::handle additional_keys,
                          nb::handle additional_values, nb::handle gna_stride, nb::handle rpb, nb::handle lengths,
                          nb::handle stream, nb::handle is_circular, nb::handle query_start, nb::handle key_start,
                          nb::handle shape) {
  const Caller c = caller(name, rank);
  const auto [q, k, v] = to_inputs(c, {{"query", query}, {"key", key}, {"value", value}});
  const Neighborhood neighborhood =
      to_neighborhood(c, kernel_size, stride, dilation, is_causal, gna_stride, is_circular);
  const bool with_lse = to_flag(c, "return_lse", return_lse);
  AttentionOptions options{to_scale(c, scale),
                           to_optional_array(c, "additional_keys", additional_keys),
                           to_optional_array(c, "additional_values", additional_values),
                           to_optional_array(c, "rpb", rpb),
                           to_optional_array(c, "lengths", lengths),
                           to_stream_or_device(c, stream)};
  Span{query_start, key_start, shape}.set(c, options);
  return to_result(evaluated(c, *q, *k, *v, neighborhood, options), with_lse);
}

nb::object bind_varlen(const std::string& name, int rank, nb::handle query, nb::handle key, nb::handle value,
                       nb::handle lengths, const std::string& lengths_name, nb::handle kernel_size, nb::handle stride,
                       nb::handle dilation, nb::handle is_causal, nb::handle scale, nb::handle return_lse,
                       nb::handle gna_stride, nb::handle stream, nb::handle is_circular, nb::handle query_start,
                       nb::handle key_start, nb::handle shape) {
  const Caller c = caller(name, rank, lengths_name);
  const auto [q, k, v] = to_inputs(c, {{"query", query}, {"key", key}, {"value", value}});
  AttentionOptions options;
  options.lengths = to_array(c, lengths_name.c_str(), lengths);
  const Neighborhood neighborhood =
      to_neighborhood(c, kernel_size, stride, dilation, is_causal, gna_stride, is_circular);
  options.scale = to_scale(c, scale);
  const bool with_lse = to_flag(c, "return_lse", return_lse);
  options.stream = to_stream_or_device(c, stream);
  Span{query_start, key_start, shape}.set(c, options);
  return to_result(evaluated(c, *q, *k, *v, neighborhood, options), with_lse);
}

mx::array bind_qk(const std::string& name, int rank, nb::handle query, nb::handle key, nb::handle kernel_size,
                  nb::handle stride, nb::handle dilation, nb::handle is_causal, nb::handle scale, nb::handle gna_stride,
                  nb::handle rpb, nb::handle lengths, nb::handle additional_keys, nb::handle stream,
                  nb::handle is_circular, nb::handle query_start, nb::handle key_start, nb::handle shape) {
  const Caller c = caller(name, rank);
  const auto [q, k] = to_inputs(c, {{"query", query}, {"key", key}});
  const Neighborhood neighborhood =
      to_neighborhood(c, kernel_size, stride, dilation, is_causal, gna_stride, is_circular);
  QkOptions options{to_scale(c, scale), to_optional_array(c, "rpb", rpb), to_optional_array(c, "lengths", lengths),
                    to_stream_or_device(c, stream), to_optional_array(c, "additional_keys", additional_keys)};
  Span{query_start, key_start, shape}.set(c, options);
  const WhileEvaluating released(options.lengths);
  return qk(c, *q, *k, neighborhood, options);
}

mx::array bind_av(const std::string& name, int rank, nb::handle attn, nb::handle value, nb::handle kernel_size,
                  nb::handle stride, nb::handle dilation, nb::handle is_causal, nb::handle gna_stride,
                  nb::handle lengths, nb::handle additional_values, nb::handle stream, nb::handle is_circular,
                  nb::handle query_start, nb::handle key_start, nb::handle shape) {
  const Caller c = caller(name, rank);
  const auto [weights, v] = to_inputs(c, {{"attn", attn}, {"value", value}});
  const Neighborhood neighborhood =
      to_neighborhood(c, kernel_size, stride, dilation, is_causal, gna_stride, is_circular);
  AvOptions options{to_optional_array(c, "lengths", lengths), to_stream_or_device(c, stream),
                    to_optional_array(c, "additional_values", additional_values)};
  Span{query_start, key_start, shape}.set(c, options);
  const WhileEvaluating released(options.lengths);
  return av(c, *weights, *v, neighborhood, options);
}

nb::object bind_dense_attention(nb::handle query, nb::handle key, nb::handle value, nb::handle scale,
                                nb::handle is_causal, nb::handle return_lse, nb::handle stream) {
  const Caller c = caller("attention", 1);
  const auto [q, k, v] = to_inputs(c, {{"query", query}, {"key", key}, {"value", value}});
  const DenseOptions options{to_scale(c, scale), to_flag(c, "is_causal", is_causal),
                             to_flag(c, "return_lse", return_lse), to_stream_or_device(c, stream)};
  const DenseResult result = dense_attention(c, *q, *k, *v, options);
  return options.return_lse ? to_result({result.out, *result.lse}, true) : nb::cast(result.out);
}

mx::array bind_neighborhood_mask(nb::handle shape, nb::handle kernel_size, nb::handle stride, nb::handle dilation,
                                 nb::handle is_causal, nb::handle gna_stride, nb::handle rpb, nb::handle lengths,
                                 nb::handle dtype, nb::handle stream, nb::handle is_circular, nb::handle query_start,
                                 nb::handle query_rows, nb::handle key_start, nb::handle key_rows) {
  Caller c = caller("neighborhood_mask", 0);
  const mx::Shape lengths_of_axes = to_shape(c, "shape", shape);
  c.rank = static_cast<int>(lengths_of_axes.size());
  const Neighborhood neighborhood =
      to_neighborhood(c, kernel_size, stride, dilation, is_causal, gna_stride, is_circular);
  const MaskOptions options{to_optional_array(c, "rpb", rpb),
                            to_optional_array(c, "lengths", lengths),
                            dtype.is_none() ? mx::bool_ : to_dtype(c, dtype),
                            to_stream_or_device(c, stream),
                            to_integers(c, "query_start", query_start),
                            to_optional_integers(c, "query_rows", query_rows),
                            to_integers(c, "key_start", key_start),
                            to_optional_integers(c, "key_rows", key_rows)};
  const WhileEvaluating released(options.lengths);
  return neighborhood_mask(c, lengths_of_axes, neighborhood, options);
}

// A number for each axis; a number where no argument says how many axes there are.
nb::object bind_key_span(nb::handle kernel_size, nb::handle query_start, nb::handle rows, nb::handle shape,
                         nb::handle dilation, nb::handle is_causal, nb::handle stride, nb::handle gna_stride,
                         nb::handle is_circular) {
  const Caller c = caller("key_span", 0);
  const Neighborhood n = to_neighborhood(c, kernel_size, stride, dilation, is_causal, gna_stride, is_circular);
  const PerAxis<std::int64_t> start = to_integers(c, "query_start", query_start), count = to_integers(c, "rows", rows),
                              lengths = to_integers(c, "shape", shape);
  const KeySpan span = key_span(n, start, count, lengths);
  const auto all_scalars = [](const auto&... values) { return (values.is_scalar() && ...); };
  if (all_scalars(n.kernel_size, n.stride, n.dilation, n.gna_stride, n.is_causal, n.is_circular, start, count,
                  lengths)) {
    return nb::make_tuple(span.key_start[0], span.rows[0]);
  }
  return nb::make_tuple(nb::tuple(nb::cast(span.key_start)), nb::tuple(nb::cast(span.rows)));
}

std::pair<mx::array, mx::array> bind_merge(nb::handle outputs, nb::handle lse_tensors) {
  const Caller c = caller("merge_attentions", 0);
  const std::vector<mx::array> outs = to_arrays(c, "outputs", outputs);
  const AttentionResult result = merge(outs, to_arrays(c, "lse_tensors", lse_tensors));
  return {result.out, result.lse};
}

nb::dict support_dict() {
  nb::dict matrix;
  for (const auto& [name, row] : support_matrix()) {
    nb::dict d;
    d["name"] = row.name;
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

// A name that an error will show: what is no string is no known name either.
std::string to_name(nb::handle object) {
  return nb::cast<std::string>(nb::isinstance<nb::str>(object) ? nb::str(object) : nb::repr(object));
}

ArrayDescription to_description(const Caller& c, const char* name, nb::handle object, mx::Dtype dtype) {
  if (!nb::isinstance<mx::array>(object)) return {to_shape(c, name, object), dtype};
  const mx::array& array = to_array(c, name, object);
  return {array.shape(), array.dtype()};
}

std::optional<ArrayDescription> to_optional_description(const Caller& c, const char* name, nb::handle object,
                                                        mx::Dtype dtype) {
  return object.is_none() ? std::nullopt : std::optional(to_description(c, name, object, dtype));
}

/// A call that is described, not made; `name` is the function that describes it.
WarmupCall to_call(const std::string& name, nb::handle op, nb::handle query, nb::handle key, nb::handle value,
                   nb::handle dtype, nb::handle kernel_size, nb::handle stride, nb::handle dilation,
                   nb::handle is_causal, nb::handle scale, nb::handle additional_keys, nb::handle additional_values,
                   nb::handle gna_stride, nb::handle rpb, nb::handle lengths, nb::handle stream, nb::handle is_circular,
                   nb::handle query_start, nb::handle key_start, nb::handle shape) {
  const Caller c = caller(name, 0);
  const mx::Dtype type = to_dtype(c, dtype);
  CallDescription call;
  call.op = to_name(op);
  call.query = to_description(c, "query", query, type);
  const bool has_value_as_key = call.op == "av" && value.is_none();
  if (call.op != "av") call.key = to_description(c, "key", key, type);
  if (call.op != "qk") call.value = to_description(c, "value", has_value_as_key ? key : value, type);
  call.scale = to_scale(c, scale);
  call.additional_keys = to_optional_description(c, "additional_keys", additional_keys, type);
  call.additional_values = to_optional_description(c, "additional_values", additional_values, type);
  call.rpb = to_optional_description(c, "rpb", rpb, mx::float32);
  call.lengths = to_optional_description(c, "lengths", lengths, mx::int32);
  call.stream = to_stream_or_device(c, stream);
  Span{query_start, key_start, shape}.set(c, call);
  return {std::move(call), to_neighborhood(c, kernel_size, stride, dilation, is_causal, gna_stride, is_circular)};
}

nb::dict bind_explain(const WarmupCall& described, nb::handle with_cost) {
  const auto& [call, neighborhood, gradients] = described;
  const Explanation e = explain(call, neighborhood);
  nb::dict d;
  d["tier"] = e.tier;
  d["kernel"] = e.kernel;
  d["tile"] = e.tile;
  d["declined"] = e.declined;
  d["cost"] = to_flag(caller("explain", 0), "cost", with_cost) ? gpu_cost(call, neighborhood) : "";
  return d;
}

std::pair<std::size_t, std::size_t> bind_warmup(std::vector<WarmupCall> calls, nb::handle gradients,
                                                nb::handle progress) {
  for (WarmupCall& call : calls) call.gradients = to_flag(caller("warmup", 0), "gradients", gradients);
  const auto tell = [&](std::size_t done, std::size_t total) {
    const nb::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    if (!progress.is_none()) progress(done, total);
  };
  const nb::gil_scoped_release released;
  const WarmupReport report = warmup(calls, tell);
  return {report.kernels, report.compiled};
}

nb::dict files_dict(const KernelFiles& files) {
  nb::dict d;
  d["folder"] = files.folder;
  d["files"] = files.files;
  d["bytes"] = files.bytes;
  d["limit"] = files.limit;
  return d;
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
        "return_lse"_a.none(), "additional_keys"_a.none(), "additional_values"_a.none(), "gna_stride"_a.none(),
        "rpb"_a.none(), "lengths"_a.none(), "stream"_a.none(), "is_circular"_a.none(), "query_start"_a.none(),
        "key_start"_a.none(), "shape"_a.none(), "Neighborhood attention -> out, or (out, lse).");
  m.def("varlen", bind_varlen, "name"_a, "rank"_a, "query"_a.none(), "key"_a.none(), "value"_a.none(),
        "lengths"_a.none(), "lengths_name"_a, "kernel_size"_a.none(), "stride"_a.none(), "dilation"_a.none(),
        "is_causal"_a.none(), "scale"_a.none(), "return_lse"_a.none(), "gna_stride"_a.none(), "stream"_a.none(),
        "is_circular"_a.none(), "query_start"_a.none(), "key_start"_a.none(), "shape"_a.none(),
        "The same over padded samples.");
  m.def("qk", bind_qk, "name"_a, "rank"_a, "query"_a.none(), "key"_a.none(), "kernel_size"_a.none(), "stride"_a.none(),
        "dilation"_a.none(), "is_causal"_a.none(), "scale"_a.none(), "gna_stride"_a.none(), "rpb"_a.none(),
        "lengths"_a.none(), "additional_keys"_a.none(), "stream"_a.none(), "is_circular"_a.none(),
        "query_start"_a.none(), "key_start"_a.none(), "shape"_a.none(), "Logits of the split form.");
  m.def("av", bind_av, "name"_a, "rank"_a, "attn"_a.none(), "value"_a.none(), "kernel_size"_a.none(), "stride"_a.none(),
        "dilation"_a.none(), "is_causal"_a.none(), "gna_stride"_a.none(), "lengths"_a.none(),
        "additional_values"_a.none(), "stream"_a.none(), "is_circular"_a.none(), "query_start"_a.none(),
        "key_start"_a.none(), "shape"_a.none(), "Weighted values of the split form.");
  m.def("dense_attention", bind_dense_attention, "query"_a.none(), "key"_a.none(), "value"_a.none(), "scale"_a.none(),
        "is_causal"_a.none(), "return_lse"_a.none(), "stream"_a.none(),
        "Every query to every key -> out, or (out, lse).");
  m.def("neighborhood_mask", bind_neighborhood_mask, "shape"_a.none(), "kernel_size"_a.none(), "stride"_a.none(),
        "dilation"_a.none(), "is_causal"_a.none(), "gna_stride"_a.none(), "rpb"_a.none(), "lengths"_a.none(),
        "dtype"_a.none(), "stream"_a.none(), "is_circular"_a.none(), "query_start"_a.none(), "query_rows"_a.none(),
        "key_start"_a.none(), "key_rows"_a.none(), "The neighborhood as a dense mask.");
  m.def("key_span", bind_key_span, "kernel_size"_a.none(), "query_start"_a.none(), "rows"_a.none(), "shape"_a.none(),
        "dilation"_a.none(), "is_causal"_a.none(), "stride"_a.none(), "gna_stride"_a.none(), "is_circular"_a.none(),
        "The keys that a span of queries needs.");
  m.def("merge", bind_merge, "outputs"_a.none(), "lse_tensors"_a.none(), "Joins partial attentions -> (out, lse).");

  m.def(
      "set_backend", [](nb::handle name) { set_backend(to_name(name)); }, "name"_a.none());
  m.def(
      "enter_backend", [](nb::handle name) { return enter_backend(to_name(name)); }, "name"_a.none(),
      "Begins a scope of this thread; what it returns ends it.");
  m.def("leave_backend", &leave_backend, "outer"_a);
  m.def("get_backend", &get_backend);
  m.def("is_strict", &is_strict);
  m.def(
      "set_exportable", [](bool on) { on ? Exportable::enter() : Exportable::leave(); }, "on"_a,
      "Begins or ends a region of this thread whose calls can be exported; regions nest.");
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
  m.def("get_cache_memory", &get_cache_memory, "Bytes of memory of results that are kept for the next.");
  m.def("clear_cache", &clear_cache, "Forgets the kernels compiled at run time and gives back the memory of results.");
  nb::class_<WarmupCall>(m, "_Call", "A call that is described, not made.");
  m.def("describe", to_call, "name"_a, "op"_a.none(), "query"_a.none(), "key"_a.none(), "value"_a.none(),
        "dtype"_a.none(), "kernel_size"_a.none(), "stride"_a.none(), "dilation"_a.none(), "is_causal"_a.none(),
        "scale"_a.none(), "additional_keys"_a.none(), "additional_values"_a.none(), "gna_stride"_a.none(),
        "rpb"_a.none(), "lengths"_a.none(), "stream"_a.none(), "is_circular"_a.none(), "query_start"_a.none(),
        "key_start"_a.none(), "shape"_a.none());
  m.def("explain", bind_explain, "call"_a, "with_cost"_a.none());
  m.def("warmup", bind_warmup, "calls"_a, "gradients"_a.none(), "progress"_a.none(),
        "Makes the kernels of calls -> how many, and how many of them were compiled.");
  m.def("kernel_compiler", &kernel_compiler, "Who compiles the kernels of calls made now.");
  m.def(
      "kernel_files", [] { return files_dict(kernel_files()); },
      "Compiled kernels on disk: folder, files, bytes, limit.");
  m.def(
      "clear_kernel_files", [] { return files_dict(clear_kernel_files()); }, "Removes them -> what is gone.");
  m.def(
      "load_external_tier", [](nb::handle module) { replace_compiled_tier(external_tier(module)); }, "module"_a,
      "Replaces the compiled tier by the functions of a module.");

  bind_distributed(m);
  bind_nn(m);
  bind_window(m);
  bind_probe(m);
}
