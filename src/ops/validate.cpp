#include "ops/validate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>
#include <stdexcept>

#include "graph/trace.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"

namespace natten {

namespace {

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

const char* layout(int rank) {
  switch (rank) {
    case 1:
      return "[B, L, H, D]";
    case 2:
      return "[B, H, W, heads, D]";
    default:
      return "[B, D, H, W, heads, D]";
  }
}

const char* split_layout(int rank) {
  switch (rank) {
    case 1:
      return "[B, L, H, prod(kernel_size)]";
    case 2:
      return "[B, H, W, heads, prod(kernel_size)]";
    default:
      return "[B, D, H, W, heads, prod(kernel_size)]";
  }
}

void check_array(const Caller& caller, const char* name, Spec spec, const char* expected, mx::Device device) {
  if (static_cast<int>(spec.shape.size()) != caller.rank + 3) {
    fail(caller, text(name, " must have layout ", expected, ", got shape ", to_string(spec.shape)));
  }
  validate_float(caller, name, spec.dtype, device);
  for (std::size_t axis = 1; axis < spec.shape.size(); ++axis) {
    if (spec.shape[axis] == 0) {
      fail(caller, text(name, " must have no axis of size 0 but the batch, got shape ", to_string(spec.shape)));
    }
  }
}

bool same_spatial(const mx::Shape& a, const mx::Shape& b, int rank) {
  for (int axis = 1; axis <= rank; ++axis) {
    if (a[axis] != b[axis]) return false;
  }
  return true;
}

void check_same_grid(const Caller& caller, const char* name_a, const mx::Shape& a, const char* name_b,
                     const mx::Shape& b) {
  if (a[0] != b[0]) {
    fail(caller, text("Batch dimensions must match: ", name_a, " has ", a[0], ", ", name_b, " has ", b[0]));
  }
  if (!same_spatial(a, b, caller.rank)) {
    fail(caller, text("Spatial dimensions must match: ", name_a, " ", to_string(a), ", ", name_b, " ", to_string(b)));
  }
}

void check_heads(const Caller& caller, std::int64_t heads, std::int64_t kv_heads) {
  if (heads % kv_heads != 0) {
    fail(caller, text("query heads must be divisible by key/value heads, got ", heads, " and ", kv_heads));
  }
}

template <class T>
void check_count(const Caller& caller, const char* name, const PerAxis<T>& values) {
  if (!values.is_scalar() && static_cast<int>(values.size()) != caller.rank) {
    fail(caller, text(name, " must have length ", caller.rank, ", got ", values.size()));
  }
}

void check_positive(const Caller& caller, const char* name, const PerAxis<std::int64_t>& values) {
  check_count(caller, name, values);
  for (int axis = 0; axis < caller.rank; ++axis) {
    if (values[axis] < 1) fail(caller, text(name, " values must be positive, got ", values[axis]));
  }
}

// Fills the axes of `problem`, whose lengths are shape[1..rank].
void set_axes(const Caller& caller, const mx::Shape& shape, const Neighborhood& neighborhood, Problem& problem) {
  validate_neighborhood(caller, neighborhood);
  problem.rank = caller.rank;
  const int leading = kAxes - caller.rank;
  for (int axis = 0; axis < leading; ++axis) problem.axes[axis] = Axis{1, 1, 1, 1, 1, false};
  for (int axis = 0; axis < caller.rank; ++axis) {
    const Axis a{shape[axis + 1],
                 neighborhood.kernel_size[axis],
                 neighborhood.stride[axis],
                 neighborhood.dilation[axis],
                 neighborhood.gna_stride[axis],
                 neighborhood.is_causal[axis]};
    if (a.kernel_size > a.length) {
      fail(caller, text("kernel_size[", axis, "]=", a.kernel_size, " must be <= input spatial size ", a.length));
    }
    if (a.dilation > a.length / a.kernel_size) {
      std::int64_t extent = 0;
      const bool overflow = __builtin_mul_overflow(a.dilation, a.kernel_size, &extent);
      fail(caller, text("dilation[", axis, "] * kernel_size[", axis,
                        "] = ", overflow ? text(a.dilation, " * ", a.kernel_size) : text(extent),
                        " exceeds input size ", a.length));
    }
    problem.axes[leading + axis] = a;
  }
}

void set_lengths(const Caller& caller, const std::optional<Spec>& lengths, Problem& problem) {
  if (!lengths) return;
  const std::string& name = caller.lengths_name;
  if (lengths->dtype != mx::int32 && lengths->dtype != mx::int64) {
    fail(caller, text(name, " must be int32 or int64, got ", to_string(lengths->dtype)));
  }
  const mx::Shape& shape = lengths->shape;
  const bool is_vector = shape.size() == 1 && caller.rank == 1;
  const bool is_table = shape.size() == 2 && shape[1] == caller.rank;
  if (!(is_vector || is_table) || shape[0] != problem.batch) {
    fail(caller, text(name, " must have shape [", problem.batch, caller.rank == 1 ? "]" : text(", ", caller.rank, "]"),
                      ", got ", to_string(shape)));
  }
  problem.has_lengths = true;
}

void set_rpb(const Caller& caller, const std::optional<Spec>& rpb, mx::Device device, Problem& problem) {
  if (!rpb) return;
  validate_float(caller, "rpb", rpb->dtype, device);
  bool matches = static_cast<int>(rpb->shape.size()) == caller.rank + 1 && rpb->shape[0] == problem.heads;
  std::string expected = text("[", problem.heads);
  for (int axis = 0; axis < caller.rank; ++axis) {
    const std::int64_t entries = 2 * problem.axes[kAxes - caller.rank + axis].kernel_size - 1;
    expected += text(", ", entries);
    matches = matches && rpb->shape[axis + 1] == entries;
  }
  if (!matches) fail(caller, text("rpb must have shape ", expected, "], got ", to_string(rpb->shape)));
  problem.has_rpb = true;
}

// An array is multiplied into query, which leaves logits of scale 1.
void set_scale(const Caller& caller, const std::optional<Scale>& scale, mx::Device device, Problem& problem) {
  problem.scale = 1.0 / std::sqrt(static_cast<double>(problem.head_dim));
  if (!scale) return;
  problem.scale = scale->number;
  validate_scale(caller, "scale", scale->number);
  if (!scale->array) return;
  const mx::Shape& shape = scale->array->shape();
  validate_float(caller, "scale", scale->array->dtype(), device);
  if (scale->array->size() != 1 && shape != mx::Shape{static_cast<int>(problem.heads)}) {
    fail(caller, text("scale must be a number, an array of one element or of shape [", problem.heads, "], got shape ",
                      to_string(shape)));
  }
}

// MLX counts elements in 64 bits and bytes in size_t. Inputs may be broadcasts, whose gradients are whole, so that the
// largest array is one of these, whichever of them the call reads, yields or answers as a gradient.
void check_size(const Caller& caller, const Problem& problem) {
  __int128 tokens = problem.batch;
  for (const Axis& axis : problem.axes) tokens *= axis.length;
  if (tokens > kMaxTokens) {
    fail(caller, text("batch * spatial sizes must be below 2^31 tokens, got more"));
  }
  std::int64_t row = std::max({std::int64_t{1}, problem.head_dim, problem.value_dim});
  if (problem.op != Op::attention) row = std::max(row, problem.kernel_volume());
  const __int128 elements = tokens * problem.heads * row;
  constexpr __int128 kMost = std::numeric_limits<std::int64_t>::max() / 8;
  if (elements > kMost) {
    fail(caller, text("the arrays of the call are too large: ", static_cast<std::int64_t>(tokens), " tokens x ",
                      problem.heads, " heads x ", row));
  }
  __int128 entries = problem.has_rpb ? problem.heads : 0;
  for (const Axis& axis : problem.axes) entries *= 2 * axis.kernel_size - 1;
  if (entries > kMost) fail(caller, "rpb has too many entries for its gradient");
}

// Of query and key that are right by themselves.
Problem logits_problem(const Caller& caller, Spec query, Spec key, const Neighborhood& neighborhood,
                       const std::optional<Scale>& scale, const std::optional<Spec>& rpb,
                       const std::optional<Spec>& lengths, mx::Device device) {
  check_same_grid(caller, "query", query.shape, "key", key.shape);
  if (query.shape.back() != key.shape.back()) {
    fail(caller, text("Head dim must match: query has ", query.shape.back(), ", key has ", key.shape.back()));
  }
  check_heads(caller, query.shape[caller.rank + 1], key.shape[caller.rank + 1]);
  Problem problem;
  problem.op = Op::qk;
  problem.device = device == mx::Device::gpu ? DeviceType::gpu : DeviceType::cpu;
  problem.batch = query.shape[0];
  problem.heads = query.shape[caller.rank + 1];
  problem.kv_heads = key.shape[caller.rank + 1];
  problem.head_dim = query.shape.back();
  problem.query_type = float_type(query.dtype);
  problem.key_type = problem.value_type = float_type(key.dtype);
  set_axes(caller, query.shape, neighborhood, problem);
  set_scale(caller, scale, device, problem);
  set_rpb(caller, rpb, device, problem);
  set_lengths(caller, lengths, problem);
  return problem;
}

}  // namespace

void fail(const Caller& caller, const std::string& message) {
  throw std::invalid_argument("[" + caller.name + "] " + message);
}

void validate_float(const Caller& caller, const char* name, mx::Dtype dtype, mx::Device device) {
  if (dtype != mx::float32 && dtype != mx::float16 && dtype != mx::bfloat16 && dtype != mx::float64) {
    fail(caller, text(name, " must be float32, float16, bfloat16 or float64, got ", to_string(dtype)));
  }
  if (dtype == mx::float64 && device == mx::Device::gpu) {
    fail(caller, text(name, " is float64, which only the CPU device supports; got the GPU device"));
  }
}

void validate_scale(const Caller& caller, const char* name, double scale) {
  const bool is_held = std::abs(scale) <= std::numeric_limits<float>::max();  // false for NaN
  if (!is_held) fail(caller, text(name, " must be finite in float32, got ", scale));
}

void validate_neighborhood(const Caller& caller, const Neighborhood& neighborhood) {
  check_positive(caller, "kernel_size", neighborhood.kernel_size);
  check_positive(caller, "stride", neighborhood.stride);
  check_positive(caller, "dilation", neighborhood.dilation);
  check_positive(caller, "gna_stride", neighborhood.gna_stride);
  check_count(caller, "is_causal", neighborhood.is_causal);
  for (int axis = 0; axis < caller.rank; ++axis) {
    const std::int64_t kernel_size = neighborhood.kernel_size[axis];
    const std::int64_t stride = neighborhood.stride[axis], gna_stride = neighborhood.gna_stride[axis];
    for (const auto& [name, value] : {std::pair("stride", stride), std::pair("gna_stride", gna_stride)}) {
      if (value > kernel_size) {
        fail(caller, text(name, "[", axis, "]=", value, " must be <= kernel_size[", axis, "]=", kernel_size));
      }
    }
    if (stride > 1 && gna_stride > 1) {
      fail(caller,
           text("stride[", axis, "]=", stride, " and gna_stride[", axis, "]=", gna_stride, " must not both exceed 1"));
    }
  }
}

Problem validate_attention(const Caller& caller, Spec query, Spec key, Spec value, const Neighborhood& neighborhood,
                           const std::optional<Scale>& scale, const std::optional<Spec>& rpb,
                           const std::optional<Spec>& lengths, mx::Device device) {
  check_array(caller, "query", query, layout(caller.rank), device);
  check_array(caller, "key", key, layout(caller.rank), device);
  check_array(caller, "value", value, layout(caller.rank), device);
  Problem problem = logits_problem(caller, query, key, neighborhood, scale, rpb, lengths, device);
  check_same_grid(caller, "query", query.shape, "value", value.shape);
  if (key.shape[caller.rank + 1] != value.shape[caller.rank + 1]) {
    fail(caller, text("heads of key and value must match, got ", key.shape[caller.rank + 1], " and ",
                      value.shape[caller.rank + 1]));
  }
  problem.op = Op::attention;
  problem.value_dim = value.shape.back();
  problem.value_type = float_type(value.dtype);
  check_size(caller, problem);
  return problem;
}

Problem validate_qk(const Caller& caller, Spec query, Spec key, const Neighborhood& neighborhood,
                    const std::optional<Scale>& scale, const std::optional<Spec>& rpb,
                    const std::optional<Spec>& lengths, mx::Device device) {
  check_array(caller, "query", query, layout(caller.rank), device);
  check_array(caller, "key", key, layout(caller.rank), device);
  const Problem problem = logits_problem(caller, query, key, neighborhood, scale, rpb, lengths, device);
  check_size(caller, problem);
  return problem;
}

Problem validate_av(const Caller& caller, Spec attn, Spec value, const Neighborhood& neighborhood,
                    const std::optional<Spec>& lengths, mx::Device device) {
  check_array(caller, "attn", attn, split_layout(caller.rank), device);
  check_array(caller, "value", value, layout(caller.rank), device);
  if (attn.shape[0] != value.shape[0]) {
    fail(caller, text("Batch dimensions must match: attn has ", attn.shape[0], ", value has ", value.shape[0]));
  }
  check_heads(caller, attn.shape[caller.rank + 1], value.shape[caller.rank + 1]);
  Problem problem;
  problem.op = Op::av;
  problem.device = device == mx::Device::gpu ? DeviceType::gpu : DeviceType::cpu;
  problem.batch = attn.shape[0];
  problem.heads = attn.shape[caller.rank + 1];
  problem.kv_heads = value.shape[caller.rank + 1];
  problem.value_dim = value.shape.back();
  problem.query_type = float_type(attn.dtype);
  problem.key_type = problem.value_type = float_type(value.dtype);
  set_axes(caller, value.shape, neighborhood, problem);
  mx::Shape expected = value.shape;
  expected[caller.rank + 1] = attn.shape[caller.rank + 1];
  for (int axis = 0; axis < caller.rank; ++axis) {
    const Axis& a = problem.axes[kAxes - caller.rank + axis];
    expected[axis + 1] = static_cast<int>(output_length(a.length, a.stride));
  }
  if (!same_spatial(attn.shape, expected, caller.rank)) {
    fail(caller, text("Spatial dimensions must match: attn ", to_string(attn.shape), " for value ",
                      to_string(value.shape), ", expected ceil(L / stride) queries on each axis"));
  }
  if (attn.shape.back() != problem.kernel_volume()) {
    fail(caller, text("the last axis of attn must be prod(kernel_size) = ", problem.kernel_volume(), ", got ",
                      attn.shape.back()));
  }
  set_lengths(caller, lengths, problem);
  check_size(caller, problem);
  return problem;
}

void validate_additional(const Caller& caller, const Problem& problem, const std::optional<Spec>& keys,
                         const std::optional<Spec>& values) {
  if (keys.has_value() != values.has_value()) {
    fail(caller, "additional_keys and additional_values must both be provided, got only one of them");
  }
  if (!keys) return;
  const mx::Device device = problem.device == DeviceType::gpu ? mx::Device::gpu : mx::Device::cpu;
  const auto check = [&](const char* name, Spec spec, std::int64_t dim) {
    validate_float(caller, name, spec.dtype, device);
    if (spec.shape.size() != 4) {
      fail(caller, text(name, " must be 4D [B, N, kv_heads, D], got shape ", to_string(spec.shape)));
    }
    if (spec.shape[0] != problem.batch) {
      fail(caller, text(name, " must have the batch of query, ", problem.batch, ", got ", spec.shape[0]));
    }
    if (spec.shape[2] != problem.kv_heads) {
      fail(caller, text(name, " must have the heads of key, ", problem.kv_heads, ", got ", spec.shape[2]));
    }
    if (spec.shape[3] != dim) {
      fail(caller, text(name, " must have head dim ", dim, ", got ", spec.shape[3]));
    }
  };
  check("additional_keys", *keys, problem.head_dim);
  check("additional_values", *values, problem.value_dim);
  if (keys->shape[1] != values->shape[1]) {
    fail(caller, text("additional_keys and additional_values must have the same number of tokens, got ", keys->shape[1],
                      " and ", values->shape[1]));
  }
}

void validate_length_values(const Caller& caller, const Problem& problem, const mx::array& lengths) {
  if (lengths.size() == 0 || !is_concrete(lengths)) return;
  mx::array values = mx::contiguous(mx::astype(lengths, mx::int64, mx::Device::cpu), false, mx::Device::cpu);
  values.eval();
  const std::int64_t* data = values.data<std::int64_t>();
  for (std::int64_t sample = 0; sample < problem.batch; ++sample) {
    for (int axis = 0; axis < caller.rank; ++axis) {
      const Axis& a = problem.axes[kAxes - caller.rank + axis];
      const std::int64_t length = data[sample * caller.rank + axis];
      const std::string where = caller.rank == 1 ? text(caller.lengths_name, "[", sample, "]=", length)
                                                 : text(caller.lengths_name, "[", sample, ", ", axis, "]=", length);
      if (length < a.kernel_size * a.dilation) {
        fail(caller, text(where, " must be >= kernel_size * dilation = ", a.kernel_size * a.dilation));
      }
      if (length > a.length) {
        fail(caller, text(where, " must be <= ", caller.rank == 1 ? "L_max" : text("max_spatial[", axis, "]"), " = ",
                          a.length));
      }
    }
  }
}

void validate_merge(const std::vector<mx::array>& outputs, const std::vector<mx::array>& lse_tensors) {
  const Caller caller{"merge_attentions", 0};
  if (outputs.size() < 2) fail(caller, text("expected at least two outputs, got ", outputs.size()));
  if (outputs.size() != lse_tensors.size()) {
    fail(caller,
         text("the number of outputs and lse_tensors must match, got ", outputs.size(), " and ", lse_tensors.size()));
  }
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    validate_float(caller, "outputs", outputs[i].dtype(), mx::Device::cpu);
    validate_float(caller, "lse_tensors", lse_tensors[i].dtype(), mx::Device::cpu);
    if (outputs[i].ndim() < 1) fail(caller, "outputs must have a last axis of values, got shape ()");
    if (outputs[i].shape() != outputs[0].shape()) {
      fail(caller, text("every output must have the same shape, got ", to_string(outputs[0].shape()), " and ",
                        to_string(outputs[i].shape())));
    }
    const mx::Shape expected(outputs[0].shape().begin(), outputs[0].shape().end() - 1);
    if (lse_tensors[i].shape() != expected) {
      fail(caller, text("lse_tensors must have the shape of outputs without its last axis, ", to_string(expected),
                        ", got ", to_string(lse_tensors[i].shape())));
    }
  }
}

}  // namespace natten
