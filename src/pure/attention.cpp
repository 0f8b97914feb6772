#include <algorithm>
#include <cmath>
#include <limits>

#include "graph/dtype.h"
#include "graph/numerics.h"
#include "graph/pin.h"
#include "mlx/ops.h"
#include "ops/canonical.h"
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

// [B, query rows..., H, D] -> [B, queries, H, D], only the queries that are computed, zeros in the padding.
mx::array computed_queries(const Problem& p, const mx::array& query, const Padding& padding, mx::Stream s) {
  mx::Shape start(query.ndim(), 0), step(query.ndim(), 1);
  for (int axis = 0; axis < kAxes; ++axis) {
    const Axis& a = p.axes[axis];
    const std::int64_t first = p.span(axis).query_start;
    start[axis + 1] = as_int(query_index(a, first) * a.stride - first);
    step[axis + 1] = as_int(std::min<std::int64_t>(a.stride, query.shape(axis + 1)));
  }
  const mx::array computed = mx::slice(fixed_shape(query, s), start, query.shape(), step, s);
  return mx::flatten(padding.zero_queries(computed), 1, kAxes, s);
}

// [B, key rows..., H, D] -> [B * key rows, H, D], the rows that windows index; in the type of the sums, because the
// gradient of indexing adds up.
mx::array token_rows(const mx::array& x, mx::Dtype type, mx::Stream s) {
  return mx::astype(mx::flatten(x, 0, kAxes, s), type, s);
}

// [H, 2K0-1, 2K1-1, 2K2-1] -> [entries, H]
mx::array bias_rows(const mx::array& rpb, mx::Stream s) {
  return mx::transpose(mx::flatten(rpb, 1, kAxes, s), s);
}

Slots slots_of(const Problem& p) {
  return p.op == Op::attention ? Slots::held : Slots::all;
}

// The tables of windows of all queries are made at once and cut into blocks, which saves half of the graph's nodes and
// more. Not where rows of keys are so short that the tables are larger than some blocks.
bool has_one_table(const Problem& p) {
  return p.kv_heads * (p.head_dim + p.value_dim) >= Cut::kMostBlocks / 8;
}

// Of the arrays of a block (over_windows), which the tables follow the first of; they are taken out.
BlockWindows take_windows(const Problem& p, Arrays& arrays, std::int64_t first, std::int64_t last, mx::Stream s) {
  if (!has_one_table(p)) {
    return block_windows(p, p.has_lengths ? std::optional(arrays.back()) : std::nullopt, slots_of(p), first, last, s);
  }
  const auto take = [&] {
    const mx::array table = arrays[1];
    arrays.erase(arrays.begin() + 1);
    return table;
  };
  BlockWindows windows{take(), {}, {}};
  if (has_empty_slots(p)) windows.valid = take();
  if (p.has_rpb) windows.bias = take();
  return windows;
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

// Memory is that of gathered keys and values. Blocks that make their tables have four times as many nodes.
Cut cut_of(const Problem& p) {
  std::int64_t slots = 1;
  for (int axis = 0; axis < kAxes; ++axis) slots *= slot_count(p, axis, slots_of(p));
  const std::int64_t row = p.kv_heads * (p.head_dim + p.value_dim) + 2 * p.heads;
  return {p.queries(), p.batch * slots * row * (is_float64(p) ? 8 : 4),
          has_one_table(p) ? Cut::kMostBlocks : Cut::kMostBlocks / 4};
}

// Runs `function` over blocks of queries and their windows. A block gets `[per-query array, tables, shared arrays ...,
// lengths]`: tables and lengths may be traced, and so be different ones in each run of it.
Arrays over_windows(const std::function<Arrays(const Arrays&, const BlockWindows&)>& function, const Problem& p,
                    const Padding& padding, const mx::array& per_query, Arrays shared, mx::Stream s) {
  Arrays cut{per_query};
  if (has_one_table(p)) {
    const BlockWindows all = block_windows(p, padding.lengths(), slots_of(p), 0, p.queries(), s);
    cut.push_back(all.rows);
    for (const auto& table : {all.valid, all.bias}) {
      if (table) cut.push_back(*table);
    }
  } else if (padding.lengths()) {
    shared.push_back(*padding.lengths());
  }
  const auto block = [=](Arrays arrays, std::int64_t first, std::int64_t last) {
    const BlockWindows windows = take_windows(p, arrays, first, last, s);
    return function(arrays, windows);
  };
  return in_blocks(block, cut_of(p), cut, shared, s);
}

// [B, Q, Hq, D] -> [B, Hkv, Q * G, D]: one matrix product per key/value head serves all queries.
mx::array by_kv_head(const Problem& p, const mx::array& x, mx::Stream s) {
  return mx::flatten(mx::transpose(mx::unflatten(x, 2, {as_int(p.kv_heads), -1}, s), {0, 2, 1, 3, 4}, s), 2, 3, s);
}

// The inverse, for [B, Hkv, Q * G, D].
mx::array by_query(const Problem& p, const mx::array& x, mx::Stream s) {
  const int group = as_int(p.heads / p.kv_heads);
  return mx::flatten(mx::transpose(mx::unflatten(x, 2, {-1, group}, s), {0, 2, 1, 3, 4}, s), 2, 3, s);
}

// q [B, Q, Hq, D] and keys [B or 1, N, Hkv, D] -> [B, Hkv, Q * G, N]
mx::array dense_products(const Problem& p, const mx::array& q, const mx::array& keys, mx::Dtype type, mx::Stream s) {
  const mx::array scaled = mx::multiply(mx::astype(q, type, s), mx::array(p.scale, type), s);
  return mx::matmul(by_kv_head(p, scaled, s), mx::transpose(mx::astype(keys, type, s), {0, 2, 3, 1}, s), s);
}

// weights [B, Hkv, Q * G, N] and values [B or 1, N, Hkv, Dv] -> [B, Q, Hq, Dv]
mx::array dense_sums(const Problem& p, const mx::array& weights, const mx::array& values, mx::Dtype type,
                     mx::Stream s) {
  return by_query(p, mx::matmul(weights, mx::transpose(mx::astype(values, type, s), {0, 2, 1, 3}, s), s), s);
}

constexpr double kNegativeInfinity = -std::numeric_limits<double>::infinity();

Arrays attention(const Call& call) {
  const Problem p = call.problem;
  const mx::Stream s = call.stream;
  const mx::Dtype type = sum_type(call.inputs);
  const Padding padding(p, call.find(Argument::lengths), s);
  const auto tokens = [&](const mx::array& x) { return padding.zero_tokens(fixed_shape(x, s)); };

  const auto block = [=](const Arrays& arrays, const BlockWindows& windows) -> Arrays {
    const std::optional<mx::array> bias = p.has_rpb ? std::optional(arrays[3]) : std::nullopt;
    const mx::array logits = window_logits(p, arrays[0], arrays[1], bias, windows, type, s);
    const auto [weights, lse] = softmax(fill_empty(logits, windows, kNegativeInfinity, s), s);
    return {weighted_values(weights, arrays[2], windows, s), mx::flatten(mx::squeeze(lse, -1, s), 2, 3, s)};
  };
  Arrays shared{token_rows(tokens(call[Argument::key]), type, s), token_rows(tokens(call[Argument::value]), type, s)};
  if (p.has_rpb) shared.push_back(bias_rows(call[Argument::rpb], s));
  const mx::array queries = computed_queries(p, call[Argument::query], padding, s);
  const Arrays results = over_windows(block, p, padding, queries, shared, s);
  const mx::array out = mx::reshape(results[0], query_grid(p, {p.heads, p.value_dim}), s);
  const mx::array lse = mx::reshape(results[1], query_grid(p, {p.heads}), s);
  return {padding.zero_queries(mx::astype(out, call[Argument::query].dtype(), s)), padding.zero_queries(lse)};
}

Arrays attention_of(const Call& call) {
  if (call.problem.extra_tokens == 0) return attention(call);
  return with_extra_tokens(call, [&](const Problem& window, const Arrays& inputs) {
    return attention({window, Role::forward, inputs, call.stream});
  });
}

Arrays qk(const Call& call) {
  const Problem p = call.problem;
  const mx::Stream s = call.stream;
  const mx::array &query = call[Argument::query], &key = call[Argument::key];
  const mx::Dtype type = sum_type({query, key});
  const Padding padding(p, call.find(Argument::lengths), s);
  const auto tokens = [&](const mx::array& x) { return padding.zero_tokens(fixed_shape(x, s)); };

  const auto block = [=](const Arrays& arrays, const BlockWindows& windows) -> Arrays {
    const std::optional<mx::array> bias = p.has_rpb ? std::optional(arrays[2]) : std::nullopt;
    const mx::array logits = window_logits(p, arrays[0], arrays[1], bias, windows, type, s);
    return {mx::flatten(fill_empty(logits, windows, kNegativeInfinity, s), 2, 3, s)};
  };
  Arrays shared{token_rows(tokens(key), type, s)};
  if (p.has_rpb) shared.push_back(bias_rows(call[Argument::rpb], s));
  const mx::array logits = over_windows(block, p, padding, computed_queries(p, query, padding, s), shared, s)[0];
  return {padding.zero_queries(
      mx::astype(mx::reshape(logits, query_grid(p, {p.heads, p.kernel_volume()}), s), query.dtype(), s))};
}

Arrays av(const Call& call) {
  const Problem p = call.problem;
  const mx::Stream s = call.stream;
  const mx::array &attn = call[Argument::attn], &value = call[Argument::value];
  const mx::Dtype type = sum_type({attn, value});
  const Padding padding(p, call.find(Argument::lengths), s);

  const auto block = [=](const Arrays& arrays, const BlockWindows& windows) -> Arrays {
    const mx::array weights = mx::unflatten(mx::astype(arrays[0], type, s), 2, {as_int(p.kv_heads), -1}, s);
    return {weighted_values(fill_empty(weights, windows, 0.0, s), arrays[1], windows, s)};
  };
  const mx::array weights = padding.zero_queries(fixed_shape(attn, s));
  const mx::array rows = token_rows(padding.zero_tokens(fixed_shape(value, s)), type, s);
  const mx::array out = over_windows(block, p, padding, mx::flatten(weights, 1, kAxes, s), {rows}, s)[0];
  return {
      padding.zero_queries(mx::astype(mx::reshape(out, query_grid(p, {p.heads, p.value_dim}), s), attn.dtype(), s))};
}

// Blocks of dense products, whose keys are few: in a CPU's caches, or as many megabytes as keep a GPU busy.
Cut dense_cut(const Problem& p, std::int64_t bytes_per_query, mx::Stream s) {
  constexpr std::int64_t kGpuBytes = std::int64_t{256} << 20;
  Cut cut{p.queries(), bytes_per_query};
  if (s.device == mx::Device::gpu) {
    const std::int64_t most = std::max<std::int64_t>(kGpuBytes / std::max<std::int64_t>(bytes_per_query, 1), 1);
    cut.most_blocks = std::min((p.queries() + most - 1) / most, Cut::kMostBlocks);
  }
  return cut;
}

}  // namespace

std::pair<mx::array, mx::array> dense_attention(const Problem& p, const mx::array& query, const mx::array& keys,
                                                const mx::array& values, const std::optional<mx::array>& lengths,
                                                mx::Stream s) {
  const mx::Dtype type = sum_type({query, keys, values});
  const Padding padding(p, lengths, s);
  const std::int64_t count = keys.shape(1);

  const auto block = [=](const Arrays& arrays, std::int64_t, std::int64_t) -> Arrays {
    const auto [weights, lse] = softmax(dense_products(p, arrays[0], arrays[1], type, s), s);
    return {dense_sums(p, weights, arrays[2], type, s), mx::squeeze(by_query(p, lse, s), -1, s)};
  };
  const Arrays results =
      in_blocks(block, dense_cut(p, 2 * p.batch * p.heads * count * mx::size_of(type), s),
                {computed_queries(p, query, padding, s)}, {fixed_shape(keys, s), fixed_shape(values, s)}, s);
  const mx::array out = mx::reshape(results[0], query_grid(p, {p.heads, p.value_dim}), s);
  return {padding.zero_queries(mx::astype(out, query.dtype(), s)),
          padding.zero_queries(mx::reshape(results[1], query_grid(p, {p.heads}), s))};
}

mx::array dense_logits(const Problem& p, const mx::array& query, const mx::array& keys,
                       const std::optional<mx::array>& lengths, mx::Stream s) {
  const Padding padding(p, lengths, s);
  const mx::array q = computed_queries(p, query, padding, s);
  const mx::array logits = by_query(p, dense_products(p, q, fixed_shape(keys, s), sum_type({query, keys}), s), s);
  return padding.zero_queries(mx::reshape(logits, query_grid(p, {p.heads, keys.shape(1)}), s));
}

mx::array dense_values(const Problem& p, const mx::array& weights, const mx::array& values,
                       const std::optional<mx::array>& lengths, mx::Stream s) {
  const mx::Dtype type = sum_type({weights, values});
  const Padding padding(p, lengths, s);
  const mx::array attn = mx::astype(padding.zero_queries(fixed_shape(weights, s)), type, s);
  const mx::array out =
      dense_sums(p, by_kv_head(p, mx::flatten(attn, 1, kAxes, s), s), fixed_shape(values, s), type, s);
  return padding.zero_queries(mx::reshape(out, query_grid(p, {p.heads, values.shape(3)}), s));
}

Problem window_problem(Problem p) {
  p.query_type = p.key_type = p.value_type = is_float64(p) ? FloatType::float64 : FloatType::float32;
  p.extra_tokens = 0;
  return p;
}

Arrays with_extra_tokens(const Call& call, const std::function<Arrays(const Problem&, const Arrays&)>& window) {
  const mx::Stream s = call.stream;
  const Problem p = window_problem(call.problem);
  const auto wide = [&](Argument a) { return mx::astype(call[a], to_dtype(p.query_type), s); };
  const auto tokens = [&](Argument a) { return with_rank_axes(wide(a), 1, s); };
  Arrays inputs;
  for (const Argument a : inputs_of(p, Role::forward)) inputs.push_back(a == Argument::lengths ? call[a] : wide(a));
  const std::optional<mx::array> lengths = call.find(Argument::lengths);
  const Arrays of_window = window(p, inputs);
  const auto [dense_out, dense_lse] =
      dense_attention(p, inputs[0], tokens(Argument::extra_key), tokens(Argument::extra_value), lengths, s);
  const auto [out, lse] = merge({of_window[0], dense_out}, {of_window[1], dense_lse}, call[Argument::query].dtype(), s);
  const Padding padding(p, lengths, s);
  return {padding.zero_queries(out), padding.zero_queries(lse)};
}

Arrays extra_gradients(const Call& call) {
  const Problem p = call.problem;
  const mx::Stream s = call.stream;
  const mx::Dtype type = sum_type(call.inputs);
  const Padding padding(p, call.find(Argument::lengths), s);
  const auto per_query = [&](const mx::array& x) { return mx::flatten(padding.zero_queries(x), 1, kAxes, s); };
  const auto tokens = [&](Argument a) { return fixed_shape(with_rank_axes(call[a], 1, s), s); };
  const mx::array dout = mx::astype(call[Argument::dout], type, s);
  const mx::array products = mx::multiply(mx::astype(call[Argument::out], type, s), dout, s);
  const mx::array delta = mx::subtract(mx::sum(products, -1, false, s), call[Argument::dlse], s);
  // A query all of whose logits are -inf has no weights.
  const mx::array held = mx::not_equal(call[Argument::lse], mx::array(kNegativeInfinity, type), s);
  const mx::array lse = select(held, call[Argument::lse], -kNegativeInfinity, s);

  const auto block = [=](const Arrays& a, std::int64_t, std::int64_t) -> Arrays {
    const auto rows = [&](const mx::array& x) { return by_kv_head(p, mx::astype(x, type, s), s); };
    const auto column = [&](const mx::array& x) { return rows(mx::expand_dims(x, -1, s)); };
    const mx::array logits = dense_products(p, a[0], a[4], type, s);
    const mx::array weights = exponential(mx::subtract(logits, column(a[2]), s), s);  // [B, Hkv, Q * G, N]
    const mx::array values = mx::transpose(mx::astype(a[5], type, s), {0, 2, 3, 1}, s);
    const mx::array dweights = mx::subtract(mx::matmul(rows(a[1]), values, s), column(a[3]), s);
    const mx::array dlogits = mx::multiply(mx::multiply(weights, dweights, s), mx::array(p.scale, type), s);
    const auto sums = [&](const mx::array& x, const mx::array& of) {  // over the queries of the block
      return mx::expand_dims(mx::matmul(mx::swapaxes(x, 2, 3, s), rows(of), s), 1, s);
    };
    return {sums(dlogits, a[0]), sums(weights, a[1])};  // [B, 1, Hkv, N, D or Dv]
  };
  const std::int64_t row = p.batch * p.heads * (3 * p.extra_tokens + p.head_dim + 2 * p.value_dim);
  const Arrays results = in_blocks(block, dense_cut(p, row * mx::size_of(type), s),
                                   {computed_queries(p, call[Argument::query], padding, s), per_query(dout),
                                    per_query(lse), per_query(select(held, delta, 0.0, s))},
                                   {tokens(Argument::extra_key), tokens(Argument::extra_value)}, s);
  const auto gradient = [&](const mx::array& x, Argument of) {
    const mx::array sum = mx::swapaxes(mx::sum(x, 1, false, s), 1, 2, s);
    return mx::astype(with_three_axes(sum, 1, s), call[of].dtype(), s);
  };
  return {gradient(results[0], Argument::extra_key), gradient(results[1], Argument::extra_value)};
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
    return block_objection(pure::cut_of(p));
  };
  tier.choice = [](const Problem&) { return KernelChoice{"MLX operations over blocks of queries", ""}; };
  tier.takes = kSpan | kCircularAxis | kLongCausalKernel | kExtraTokens;
  tier.differentiated_by_mlx = true;
  tier.run = [](const Call& call) {
    const Op op = call.problem.op;
    if (call.role == Role::backward_extra) return pure::extra_gradients(call);
    return op == Op::attention ? pure::attention_of(call) : op == Op::qk ? pure::qk(call) : pure::av(call);
  };
  return tier;
}

}  // namespace natten
