#include "ops/validate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "ops/validate_axes.h"

namespace natten {

namespace {

void check_not_empty(const Caller& caller, const char* name, Spec spec, int axis) {
  if (spec.shape[axis] != 0) return;
  fail(caller, text(name, " must have no axis of size 0 but the batch, got shape ", to_string(spec.shape)));
}

bool same_spatial(const mx::Shape& a, const mx::Shape& b, int rank) {
  for (int axis = 1; axis <= rank; ++axis) {
    if (a[axis] != b[axis]) return false;
  }
  return true;
}

void check_same_batch(const Caller& caller, const char* name_a, const mx::Shape& a, const char* name_b,
                      const mx::Shape& b) {
  if (a[0] != b[0]) {
    fail(caller, text("Batch dimensions must match: ", name_a, " has ", a[0], ", ", name_b, " has ", b[0]));
  }
}

void check_same_grid(const Caller& caller, const char* name_a, const mx::Shape& a, const char* name_b,
                     const mx::Shape& b) {
  check_same_batch(caller, name_a, a, name_b, b);
  if (!same_spatial(a, b, caller.rank)) {
    fail(caller, text("Spatial dimensions must match: ", name_a, " ", to_string(a), ", ", name_b, " ", to_string(b)));
  }
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
  __int128 queries = problem.batch, keys = problem.batch, volume = 1;
  for (int axis = 0; axis < kAxes; ++axis) {
    queries *= problem.op == Op::av ? problem.queries(axis) : problem.span(axis).query_rows;
    keys *= problem.span(axis).key_rows;
    volume *= problem.axes[axis].kernel_size;
    if (volume > std::numeric_limits<std::int32_t>::max() && (problem.op != Op::attention || volume > kMostPositions)) {
      fail(caller,
           text("prod(kernel_size) must be below ", problem.op == Op::attention ? "2^60" : "2^31", ", got more"));
    }
  }
  const __int128 tokens = std::max(queries, keys);
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

// Their number.
std::int64_t additional_tokens(const Caller& caller, const Problem& problem, const char* name,
                               const std::optional<Spec>& spec, std::int64_t dim) {
  if (!spec) return 0;
  const mx::Shape& shape = spec->shape;
  validate_float(caller, name, spec->dtype, problem.device == DeviceType::gpu ? mx::Device::gpu : mx::Device::cpu);
  if (shape.size() != 4) {
    fail(caller, text(name, " must be 4D [B, N, kv_heads, D], got shape ", to_string(shape)));
  }
  if (shape[0] != problem.batch && shape[0] != 1) {
    fail(caller, text(name, " must have the batch of query, ", problem.batch, ", or 1, got ", shape[0]));
  }
  if (shape[2] != problem.kv_heads) {
    fail(caller, text(name, " must have the heads of key, ", problem.kv_heads, ", got ", shape[2]));
  }
  if (shape[3] != dim) fail(caller, text(name, " must have head dim ", dim, ", got ", shape[3]));
  return shape[1];
}

// Of the arrays on the sides of queries and of keys that are right by themselves.
Problem problem_of(const Caller& caller, Op op, Spec queries, Spec keys, mx::Device device) {
  Problem problem;
  problem.op = op;
  problem.device = device == mx::Device::gpu ? DeviceType::gpu : DeviceType::cpu;
  problem.batch = queries.shape[0];
  problem.heads = queries.shape[caller.rank + 1];
  problem.kv_heads = keys.shape[caller.rank + 1];
  problem.query_type = float_type(queries.dtype);
  problem.key_type = problem.value_type = float_type(keys.dtype);
  if (problem.heads % problem.kv_heads != 0) {
    fail(caller,
         text("query heads must be divisible by key/value heads, got ", problem.heads, " and ", problem.kv_heads));
  }
  return problem;
}

Problem logits_problem(const Caller& caller, Spec query, Spec key, const Neighborhood& neighborhood,
                       const Given& given) {
  const Placement& placement = given.placement;
  check_placement(caller, placement);
  if (is_whole(caller, placement)) {
    check_same_grid(caller, "query", query.shape, "key", key.shape);
  } else {
    check_same_batch(caller, "query", query.shape, "key", key.shape);
  }
  if (query.shape.back() != key.shape.back()) {
    fail(caller, text("Head dim must match: query has ", query.shape.back(), ", key has ", key.shape.back()));
  }
  Problem problem = problem_of(caller, Op::qk, query, key, given.device);
  problem.head_dim = query.shape.back();
  set_axes(caller, query.shape, neighborhood, placement, problem);
  if (!is_whole(caller, placement)) {
    set_spans(caller, placement, rows_of(caller, query.shape), rows_of(caller, key.shape), given.lengths.has_value(),
              problem);
  }
  set_scale(caller, given.scale, given.device, problem);
  set_rpb(caller, given.rpb, given.device, problem);
  set_lengths(caller, given.lengths, problem);
  shorten_dilations(problem);
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

void validate_input(const Caller& caller, const char* name, Spec spec, mx::Device device) {
  const bool is_attn = std::string_view(name) == "attn";
  if (static_cast<int>(spec.shape.size()) != caller.rank + 3) {
    constexpr const char* kAxesOfRank[] = {"[B, L, H, ", "[B, H, W, heads, ", "[B, D, H, W, heads, "};
    fail(caller, text(name, " must have layout ", kAxesOfRank[caller.rank - 1], is_attn ? "prod(kernel_size)" : "D",
                      "], got shape ", to_string(spec.shape)));
  }
  validate_float(caller, name, spec.dtype, device);
  if (is_attn) return;  // may hold no query of a span
  for (int axis = 1; axis < caller.rank + 3; ++axis) check_not_empty(caller, name, spec, axis);
}

Problem validate_attention(const Caller& caller, Spec query, Spec key, Spec value, const Neighborhood& neighborhood,
                           const Given& given) {
  validate_input(caller, "query", query, given.device);
  validate_input(caller, "key", key, given.device);
  validate_input(caller, "value", value, given.device);
  Problem problem = logits_problem(caller, query, key, neighborhood, given);
  check_same_grid(caller, "key", key.shape, "value", value.shape);
  if (key.shape[caller.rank + 1] != value.shape[caller.rank + 1]) {
    fail(caller, text("heads of key and value must match, got ", key.shape[caller.rank + 1], " and ",
                      value.shape[caller.rank + 1]));
  }
  problem.op = Op::attention;
  problem.value_dim = value.shape.back();
  problem.value_type = float_type(value.dtype);
  shorten_causal_windows(problem);
  check_size(caller, problem);
  return problem;
}

Problem validate_qk(const Caller& caller, Spec query, Spec key, const Neighborhood& neighborhood, const Given& given) {
  validate_input(caller, "query", query, given.device);
  validate_input(caller, "key", key, given.device);
  const Problem problem = logits_problem(caller, query, key, neighborhood, given);
  check_size(caller, problem);
  return problem;
}

Problem validate_av(const Caller& caller, Spec attn, Spec value, const Neighborhood& neighborhood, const Given& given,
                    std::int64_t additional) {
  const Placement& placement = given.placement;
  validate_input(caller, "attn", attn, given.device);
  validate_input(caller, "value", value, given.device);
  check_placement(caller, placement);
  check_same_batch(caller, "attn", attn.shape, "value", value.shape);
  const bool whole_axes = is_whole(caller, placement);
  for (int axis = whole_axes ? 1 : caller.rank + 1; axis < caller.rank + 3; ++axis)
    check_not_empty(caller, "attn", attn, axis);
  Problem problem = problem_of(caller, Op::av, attn, value, given.device);
  problem.value_dim = value.shape.back();
  set_axes(caller, value.shape, neighborhood, placement, problem);
  const Rows queries = query_rows_of_attn(caller, attn.shape, value.shape, placement, problem);
  if (!whole_axes) {
    set_spans(caller, placement, queries, rows_of(caller, value.shape), given.lengths.has_value(), problem);
  }
  check_size(caller, problem);
  if (attn.shape.back() != problem.kernel_volume() + additional) {
    fail(caller, text("the last axis of attn must be prod(kernel_size) ", additional > 0 ? "+ additional tokens " : "",
                      "= ", problem.kernel_volume() + additional, ", got ", attn.shape.back()));
  }
  set_lengths(caller, given.lengths, problem);
  shorten_dilations(problem);
  return problem;
}

std::int64_t validate_additional(const Caller& caller, const Problem& problem, const std::optional<Spec>& keys,
                                 const std::optional<Spec>& values) {
  if (keys.has_value() != values.has_value()) {
    fail(caller, "additional_keys and additional_values must both be provided, got only one of them");
  }
  const std::int64_t key_count = validate_additional_keys(caller, problem, keys);
  const std::int64_t value_count = validate_additional_values(caller, problem, values);
  if (key_count != value_count) {
    fail(caller, text("additional_keys and additional_values must have the same number of tokens, got ", key_count,
                      " and ", value_count));
  }
  return key_count;
}

std::int64_t validate_additional_keys(const Caller& caller, const Problem& problem, const std::optional<Spec>& keys) {
  return additional_tokens(caller, problem, "additional_keys", keys, problem.head_dim);
}

std::int64_t validate_additional_values(const Caller& caller, const Problem& problem,
                                        const std::optional<Spec>& values) {
  return additional_tokens(caller, problem, "additional_values", values, problem.value_dim);
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
