#include <cmath>
#include <limits>

#include "graph/dtype.h"
#include "graph/numerics.h"
#include "graph/pin.h"
#include "mlx/ops.h"
#include "pure/blocks.h"
#include "pure/padding.h"
#include "pure/pure.h"
#include "pure/windows.h"

namespace natten::pure {

namespace {

int as_int(std::int64_t value) {
  return static_cast<int>(value);
}

// Sums are float32 whatever the storage, float64 where an operand is.
mx::Dtype sum_type(const Arrays& operands) {
  for (const mx::array& a : operands) {
    if (a.dtype() == mx::float64) return mx::float64;
  }
  return mx::float32;
}

mx::array fixed_shape(const mx::array& a, mx::Stream s) {
  return pin({a}, {}, s)[0];
}

mx::Shape query_grid(const Problem& p, std::initializer_list<std::int64_t> trailing) {
  mx::Shape shape{as_int(p.batch)};
  for (const Axis& axis : p.axes) shape.push_back(as_int(output_length(axis.length, axis.stride)));
  for (std::int64_t size : trailing) shape.push_back(as_int(size));
  return shape;
}

// [B, L0, L1, L2, H, D] -> [B, queries, H, D], only the queries that are computed.
mx::array computed_queries(const Problem& p, const mx::array& query, mx::Stream s) {
  mx::Shape start(query.ndim(), 0), step(query.ndim(), 1);
  for (int axis = 0; axis < kAxes; ++axis) step[axis + 1] = as_int(p.axes[axis].stride);
  return mx::flatten(mx::slice(query, start, query.shape(), step, s), 1, kAxes, s);
}

// [B, L0, L1, L2, H, D] -> [B * tokens, H, D], the rows that windows index; in the type of the sums, because the
// gradient of indexing adds up.
mx::array token_rows(const mx::array& x, mx::Dtype type, mx::Stream s) {
  return mx::astype(mx::flatten(x, 0, kAxes, s), type, s);
}

// [H, 2K0-1, 2K1-1, 2K2-1] -> [entries, H]
mx::array bias_rows(const mx::array& rpb, mx::Stream s) {
  return mx::transpose(mx::flatten(rpb, 1, kAxes, s), s);
}

// Lengths are the last array of a block: they may be traced, and so be different ones in each run of it.
Arrays with_lengths(Arrays shared, const Padding& padding) {
  if (padding.lengths()) shared.push_back(*padding.lengths());
  return shared;
}
std::optional<mx::array> lengths_of(const Problem& p, const Arrays& arrays) {
  return p.has_lengths ? std::optional(arrays.back()) : std::nullopt;
}

// q [B, Q, Hq, D], keys by row -> [B, Q, Hkv, G, slots]; query heads are grouped, so that grouped K is never repeated.
mx::array window_logits(const Problem& p, const mx::array& q, const mx::array& key_rows,
                        const std::optional<mx::array>& bias, const BlockWindows& windows, mx::Dtype type,
                        mx::Stream s) {
  const mx::array grouped =
      mx::unflatten(mx::multiply(mx::astype(q, type, s), mx::array(p.scale, type), s), 2, {as_int(p.kv_heads), -1}, s);
  const mx::array keys = take_rows(key_rows, windows.rows, s);  // [B, Q, slots, Hkv, D]
  mx::array logits = mx::matmul(grouped, mx::transpose(keys, {0, 1, 3, 4, 2}, s), s);
  if (bias) {
    const mx::array per_slot = mx::astype(take_rows(*bias, *windows.bias, s), type, s);  // [S, Q, slots, Hq]
    logits =
        mx::add(logits, mx::unflatten(mx::transpose(per_slot, {0, 1, 3, 2}, s), 2, {as_int(p.kv_heads), -1}, s), s);
  }
  return logits;
}

// Replaces the entries of empty slots in [B, Q, Hkv, G, slots].
mx::array fill_empty(const mx::array& x, const BlockWindows& windows, double fill, mx::Stream s) {
  if (!windows.valid) return x;
  return select(mx::expand_dims(*windows.valid, {2, 3}, s), x, fill, s);
}

// weights [B, Q, Hkv, G, slots], values by row -> [B, Q, Hq, Dv]
mx::array weighted_values(const mx::array& weights, const mx::array& value_rows, const BlockWindows& windows,
                          mx::Stream s) {
  const mx::array values = take_rows(value_rows, windows.rows, s);
  return mx::flatten(mx::matmul(weights, mx::transpose(values, {0, 1, 3, 2, 4}, s), s), 2, 3, s);
}

// Gathered keys and values of the window of one query, per sample of the batch.
std::int64_t bytes_per_query(const Problem& p) {
  const std::int64_t row = p.kv_heads * (p.head_dim + p.value_dim) + 2 * p.heads;
  return p.batch * p.kernel_volume() * row * (is_float64(p) ? 8 : 4);
}

constexpr double kNegativeInfinity = -std::numeric_limits<double>::infinity();

Arrays attention(const Call& call) {
  const Problem p = call.problem;
  const mx::Stream s = call.stream;
  const mx::Dtype type = sum_type(call.inputs);
  const Padding padding(p, call.find(Argument::lengths), s);
  const auto tokens = [&](const mx::array& x) { return padding.zero_tokens(fixed_shape(x, s)); };

  const auto block = [=](const Arrays& arrays, std::int64_t first, std::int64_t last) -> Arrays {
    const BlockWindows windows = block_windows(p, lengths_of(p, arrays), first, last, s);
    const std::optional<mx::array> bias = p.has_rpb ? std::optional(arrays[3]) : std::nullopt;
    const mx::array logits = window_logits(p, arrays[0], arrays[1], bias, windows, type, s);
    const auto [weights, lse] = softmax(fill_empty(logits, windows, kNegativeInfinity, s), s);
    return {weighted_values(weights, arrays[2], windows, s), mx::flatten(mx::squeeze(lse, -1, s), 2, 3, s)};
  };
  Arrays shared{token_rows(tokens(call[Argument::key]), type, s), token_rows(tokens(call[Argument::value]), type, s)};
  if (p.has_rpb) shared.push_back(bias_rows(call[Argument::rpb], s));
  const Arrays results =
      in_blocks(block, p.queries(), bytes_per_query(p), {computed_queries(p, tokens(call[Argument::query]), s)},
                with_lengths(shared, padding), s);
  const mx::array out = mx::reshape(results[0], query_grid(p, {p.heads, p.value_dim}), s);
  const mx::array lse = mx::reshape(results[1], query_grid(p, {p.heads}), s);
  return {padding.zero_queries(mx::astype(out, call[Argument::query].dtype(), s)), padding.zero_queries(lse)};
}

Arrays qk(const Call& call) {
  const Problem p = call.problem;
  const mx::Stream s = call.stream;
  const mx::array &query = call[Argument::query], &key = call[Argument::key];
  const mx::Dtype type = sum_type({query, key});
  const Padding padding(p, call.find(Argument::lengths), s);
  const auto tokens = [&](const mx::array& x) { return padding.zero_tokens(fixed_shape(x, s)); };

  const auto block = [=](const Arrays& arrays, std::int64_t first, std::int64_t last) -> Arrays {
    const BlockWindows windows = block_windows(p, lengths_of(p, arrays), first, last, s);
    const std::optional<mx::array> bias = p.has_rpb ? std::optional(arrays[2]) : std::nullopt;
    const mx::array logits = window_logits(p, arrays[0], arrays[1], bias, windows, type, s);
    return {mx::flatten(fill_empty(logits, windows, kNegativeInfinity, s), 2, 3, s)};
  };
  Arrays shared{token_rows(tokens(key), type, s)};
  if (p.has_rpb) shared.push_back(bias_rows(call[Argument::rpb], s));
  const mx::array logits = in_blocks(block, p.queries(), bytes_per_query(p), {computed_queries(p, tokens(query), s)},
                                     with_lengths(shared, padding), s)[0];
  return {padding.zero_queries(
      mx::astype(mx::reshape(logits, query_grid(p, {p.heads, p.kernel_volume()}), s), query.dtype(), s))};
}

Arrays av(const Call& call) {
  const Problem p = call.problem;
  const mx::Stream s = call.stream;
  const mx::array &attn = call[Argument::attn], &value = call[Argument::value];
  const mx::Dtype type = sum_type({attn, value});
  const Padding padding(p, call.find(Argument::lengths), s);

  const auto block = [=](const Arrays& arrays, std::int64_t first, std::int64_t last) -> Arrays {
    const BlockWindows windows = block_windows(p, lengths_of(p, arrays), first, last, s);
    const mx::array weights = mx::unflatten(mx::astype(arrays[0], type, s), 2, {as_int(p.kv_heads), -1}, s);
    return {weighted_values(fill_empty(weights, windows, 0.0, s), arrays[1], windows, s)};
  };
  const mx::array weights = padding.zero_queries(fixed_shape(attn, s));
  const mx::array out =
      in_blocks(block, p.queries(), bytes_per_query(p), {mx::flatten(weights, 1, kAxes, s)},
                with_lengths({token_rows(padding.zero_tokens(fixed_shape(value, s)), type, s)}, padding), s)[0];
  return {
      padding.zero_queries(mx::astype(mx::reshape(out, query_grid(p, {p.heads, p.value_dim}), s), attn.dtype(), s))};
}

}  // namespace

std::pair<mx::array, mx::array> dense_attention(const Problem& p, const mx::array& query, const mx::array& keys,
                                                const mx::array& values, const std::optional<mx::array>& lengths,
                                                mx::Stream s) {
  const mx::Dtype type = sum_type({query, keys, values});
  const Padding padding(p, lengths, s);
  const std::int64_t count = keys.shape(1);

  const auto block = [=](const Arrays& arrays, std::int64_t first, std::int64_t last) -> Arrays {
    // [B, Q, Hq, D] -> [B, Hkv, Q * G, D]: one matrix product per key/value head.
    const int group = as_int(p.heads / p.kv_heads);
    const auto by_head = [&](const mx::array& x) {
      return mx::flatten(mx::transpose(mx::unflatten(x, 2, {as_int(p.kv_heads), group}, s), {0, 2, 1, 3, 4}, s), 2, 3,
                         s);
    };
    const auto by_query = [&](const mx::array& x) {
      return mx::flatten(mx::transpose(mx::unflatten(x, 2, {as_int(last - first), group}, s), {0, 2, 1, 3, 4}, s), 2, 3,
                         s);
    };
    const mx::array q = mx::multiply(mx::astype(arrays[0], type, s), mx::array(p.scale, type), s);
    const mx::array k = mx::transpose(mx::astype(arrays[1], type, s), {0, 2, 3, 1}, s);
    const mx::array v = mx::transpose(mx::astype(arrays[2], type, s), {0, 2, 1, 3}, s);
    const auto [weights, lse] = softmax(mx::matmul(by_head(q), k, s), s);
    return {by_query(mx::matmul(weights, v, s)), mx::squeeze(by_query(lse), -1, s)};
  };
  const Arrays results = in_blocks(block, p.queries(), 2 * p.batch * p.heads * count * mx::size_of(type),
                                   {computed_queries(p, padding.zero_tokens(fixed_shape(query, s)), s)},
                                   {fixed_shape(keys, s), fixed_shape(values, s)}, s);
  const mx::array out = mx::reshape(results[0], query_grid(p, {p.heads, p.value_dim}), s);
  return {padding.zero_queries(mx::astype(out, query.dtype(), s)),
          padding.zero_queries(mx::reshape(results[1], query_grid(p, {p.heads}), s))};
}

std::pair<mx::array, mx::array> merge(const Arrays& outputs, const Arrays& lse_tensors, mx::Dtype out_dtype,
                                      mx::Stream s) {
  Arrays all = outputs;
  all.insert(all.end(), lse_tensors.begin(), lse_tensors.end());
  const mx::Dtype type = sum_type(all);

  Arrays wide;
  for (const mx::array& lse : lse_tensors) wide.push_back(mx::astype(lse, type, s));
  const mx::array stacked = mx::stack(wide, 0, s);
  // A partial attention without keys has lse -inf: it must weigh nothing, whatever its output and the cotangents hold,
  // forward and backward. So -inf is replaced before the arithmetic, and what comes of it after.
  const mx::array nothing(kNegativeInfinity, type);
  const mx::array held = mx::not_equal(stacked, nothing, s);
  const mx::array some_held = mx::any(held, 0, false, s);
  const mx::array top =
      mx::stop_gradient(mx::where(some_held, mx::max(stacked, 0, false, s), mx::array(0.0, type), s), s);
  const mx::array finite = mx::where(held, stacked, top, s);
  const mx::array weights = select(held, exponential(mx::subtract(finite, top, s), s), 0.0, s);
  const mx::array total = select(some_held, mx::sum(weights, 0, false, s), 1.0, s);

  mx::array out = mx::zeros_like(mx::astype(outputs[0], type, s), s);
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const auto part = [&](const mx::array& x) {
      return mx::expand_dims(mx::take(x, static_cast<int>(i), 0, s), -1, s);
    };
    const mx::array share = mx::divide(part(weights), mx::expand_dims(total, -1, s), s);
    const mx::array kept = select(part(held), mx::astype(outputs[i], type, s), 0.0, s);
    out = mx::add(out, mx::multiply(share, kept, s), s);
  }
  const mx::array lse = select(some_held, mx::add(top, mx::log(total, s), s), kNegativeInfinity, s);
  return {mx::astype(out, out_dtype, s), lse};
}

}  // namespace natten::pure

namespace natten {

Tier pure_tier() {
  Tier tier;
  tier.name = "pure";
  tier.unavailable = [] { return Objection(); };
  tier.supports = [](const Problem& p, Role) {
    if (is_float64(p) && p.device == DeviceType::gpu) return Objection("float64 runs on the CPU device only");
    return block_objection(p.queries(), pure::bytes_per_query(p));
  };
  tier.choice = [](const Problem&) { return KernelChoice{"MLX operations over blocks of queries", ""}; };
  tier.differentiated_by_mlx = true;
  tier.run = [](const Call& call) {
    const Op op = call.problem.op;
    return op == Op::attention ? pure::attention(call) : op == Op::qk ? pure::qk(call) : pure::av(call);
  };
  return tier;
}

}  // namespace natten
