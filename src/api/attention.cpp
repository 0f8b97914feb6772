// The way of a call: validate, canonicalise, choose a tier, run it, join additional tokens.
#include "natten/attention.h"

#include <algorithm>

#include "api/entry.h"
#include "api/registry.h"
#include "graph/trace.h"
#include "mlx/ops.h"
#include "ops/canonical.h"
#include "ops/differentiable.h"
#include "pure/padding.h"
#include "pure/pure.h"

namespace natten {

namespace {

// The rank is read off the query; 1, 2 or 3 where that has no such meaning, for validation to say so.
Caller caller_of(const mx::array& query, const char* suffix) {
  const int rank = std::clamp(static_cast<int>(query.ndim()) - 3, 1, kAxes);
  return {"na" + std::to_string(rank) + "d" + suffix, rank};
}

mx::Dtype sum_type(const Problem& p) {
  return is_float64(p) ? mx::float64 : mx::float32;
}

// In the caller's rank.
mx::Shape result_shape(const Problem& p, std::initializer_list<std::int64_t> trailing) {
  mx::Shape shape = query_grid(p, trailing);
  shape.erase(shape.begin() + 1, shape.begin() + 1 + kAxes - p.rank);
  return shape;
}

// No samples, or no query that the query stride leaves in the span.
bool is_empty(const Problem& p) {
  return p.batch == 0 || p.queries() == 0;
}

// What tiers get: the tensors, then rpb and lengths as far as the call has them.
Arrays with_tables(Arrays tensors, const std::optional<mx::array>& rpb, const std::optional<mx::array>& lengths) {
  if (rpb) tensors.push_back(*rpb);
  if (lengths) tensors.push_back(*lengths);
  return tensors;
}

Arrays run_call(const Caller& caller, const Problem& p, const Arrays& inputs, mx::Stream s) {
  return run({choose_tier(caller, p), reference_tier(), p}, inputs, s);
}

std::optional<mx::array> checked_lengths(const Caller& caller, const Problem& p,
                                         const std::optional<mx::array>& lengths, mx::Stream s) {
  if (!lengths) return std::nullopt;
  validate_length_values(caller, p, *lengths);
  const mx::array table = canonical_lengths(*lengths, p.rank, s);
  // What tiers check of lengths is that they lie from least_length() to the axis's length.
  const bool is_checked = is_concrete(*lengths) || options_of(p) == 0;
  return is_checked ? table : pure::legal_lengths(p, table, s);
}

// [B, query rows..., Hq, D]; what stands in rows that are not computed must not reach the scale's gradient.
mx::array canonical_query(const Problem& p, const mx::array& query, const std::optional<Scale>& scale,
                          const std::optional<mx::array>& lengths, mx::Stream s) {
  const mx::array rows = with_three_axes(query, p.rank, s);
  return scale && scale->array ? scaled(zero_unused_rows(p, rows, lengths, s), scale, s) : rows;
}

std::optional<mx::array> wide_rpb(const Problem& p, const std::optional<mx::array>& rpb, mx::Stream s) {
  return rpb ? std::optional(canonical_rpb(*rpb, p.rank, sum_type(p), s)) : std::nullopt;
}

// [B or 1, N, Hkv, D] -> [B, 1, 1, N, Hkv, D]
mx::array canonical_tokens(const mx::array& tokens, std::int64_t batch, mx::Stream s) {
  const mx::array x = with_three_axes(tokens, 1, s);
  mx::Shape shape = x.shape();
  shape[0] = static_cast<int>(batch);
  return mx::broadcast_to(x, shape, s);
}

// All that a tier does not take is composed: its window and a dense attention.
Arrays run_with_additional(const Caller& caller, Problem p, const Arrays& inputs, const AttentionOptions& options,
                           mx::Stream s) {
  const std::int64_t count = options.additional_keys->shape(1);
  const Problem taken = with_additional(caller, p, count, *options.additional_keys, *options.additional_values);
  if (taken.extra_tokens > 0) return run_call(caller, taken, inputs, s);
  p.extra_tokens = count;
  return pure::with_extra_tokens({p, Role::forward, inputs, s}, [&](const Problem& window, const Arrays& of_window) {
    return run_call(caller, window, of_window, s);
  });
}

// `inputs` with keys in one array, which is computed only where the tier does not take them apart.
Arrays run_apart(const Caller& caller, Problem p, Arrays inputs, const ApartKeys& keys, mx::Stream s) {
  const TierPtr tier = choose_tier(caller, p);
  p.pieces = KeyPieces{keys.axis - 1 + kAxes - p.rank, keys.before[0].shape(keys.axis), keys.after[0].shape(keys.axis)};
  if (tier->takes_pieces && tier->takes_pieces(p)) {
    Arrays pieces{inputs[0]};
    for (const Arrays* each : {&keys.own, &keys.before, &keys.after}) {
      for (const mx::array& x : *each) pieces.push_back(with_three_axes(x, p.rank, s));
    }
    pieces.insert(pieces.end(), inputs.begin() + 3, inputs.end());
    inputs = pieces;
  } else {
    p.pieces.reset();
  }
  return run({tier, reference_tier(), p}, inputs, s);
}

AttentionResult attention_of(const Caller& caller, const mx::array& query, const mx::array& key, const mx::array& value,
                             const ApartKeys* apart, const Neighborhood& neighborhood,
                             const AttentionOptions& options) {
  const mx::Stream s = mx::to_stream(options.stream);
  const Problem p = validate_attention(caller, query, key, value, neighborhood, given_of(options, s.device));
  const bool has_additional = validate_additional(caller, p, options.additional_keys, options.additional_values) > 0;
  if (is_empty(p)) {
    return {mx::zeros(result_shape(p, {p.heads, p.value_dim}), query.dtype(), s),
            mx::zeros(result_shape(p, {p.heads}), sum_type(p), s)};
  }
  const std::optional<mx::array> lengths = checked_lengths(caller, p, options.lengths, s);
  Arrays tensors{canonical_query(p, query, options.scale, lengths, s), with_three_axes(key, p.rank, s),
                 with_three_axes(value, p.rank, s)};
  if (has_additional) {
    for (const auto& x : {options.additional_keys, options.additional_values}) {
      tensors.push_back(canonical_tokens(*x, p.batch, s));
    }
  }
  const Arrays inputs = with_tables(tensors, wide_rpb(p, options.rpb, s), lengths);
  const Arrays results = has_additional     ? run_with_additional(caller, p, inputs, options, s)
                         : apart != nullptr ? run_apart(caller, p, inputs, *apart, s)
                                            : run_call(caller, p, inputs, s);
  return {with_rank_axes(results[0], p.rank, s), with_rank_axes(results[1], p.rank, s)};
}

}  // namespace

// Sums are of float32 or wider, results rounded once, to query's dtype.
mx::array scaled(const mx::array& query, const std::optional<Scale>& scale, mx::Stream s) {
  if (!scale || !scale->array) return query;
  const bool wide = query.dtype() == mx::float64 || scale->array->dtype() == mx::float64;
  const mx::Dtype type = wide ? mx::float64 : mx::float32;
  const mx::array factors = mx::astype(mx::reshape(*scale->array, {-1, 1}, s), type, s);  // [1 or Hq, 1]
  return mx::astype(mx::multiply(mx::astype(query, type, s), factors, s), query.dtype(), s);
}

Problem with_additional(const Caller& caller, Problem p, std::int64_t additional, Spec keys, Spec values,
                        TierPtr tier) {
  p.extra_tokens = additional;
  if (float_type(keys.dtype) == p.key_type && float_type(values.dtype) == p.value_type) {
    if (!tier) tier = explain_choice(caller, p).tier;
    if (!tier->differentiated_by_mlx && !objection(*tier, p)) return p;
  }
  return pure::window_problem(p);
}

AttentionResult attention(const Caller& caller, const mx::array& query, const mx::array& key, const mx::array& value,
                          const Neighborhood& neighborhood, const AttentionOptions& options) {
  return attention_of(caller, query, key, value, nullptr, neighborhood, options);
}

AttentionResult attention(const Caller& caller, const mx::array& query, const ApartKeys& keys,
                          const Neighborhood& neighborhood, const AttentionOptions& options) {
  const auto joined = [&](int tensor) {
    return mx::concatenate({keys.before[tensor], keys.own[tensor], keys.after[tensor]}, keys.axis, options.stream);
  };
  return attention_of(caller, query, joined(0), joined(1), &keys, neighborhood, options);
}

std::optional<Arrays> decoding_step(const Caller& caller, Arrays inputs, const Neighborhood& neighborhood,
                                    const std::optional<Scale>& scale, std::function<Arrays(const Arrays&)> composed) {
  const mx::Stream s = mx::to_stream({});
  if (s.device == mx::Device::gpu) return {};  // no tier has a step there, and what composes it validates
  const mx::Shape& ring = inputs[3].shape();
  const std::int64_t reach = (std::int64_t{ring[2]} - 1) * ring[1];
  mx::Shape keys = inputs[1].shape();  // of a full ring, in order, and the new ones
  keys[1] += static_cast<int>(reach);
  std::vector<std::int64_t> start(caller.rank, 0), shape(keys.begin() + 1, keys.begin() + 1 + caller.rank);
  start[0] = reach;
  AttentionOptions options;
  options.query_start = start;
  options.shape = shape;
  options.scale = scale;
  Problem p = validate_attention(caller, inputs[0], {keys, inputs[1].dtype()}, {keys, inputs[2].dtype()}, neighborhood,
                                 given_of(options, s.device));
  p.axes[kAxes - caller.rank].dilation = ring[1];  // the ring has it where windows of one key need none
  const TierPtr tier = choose_tier(caller, p);
  if (!tier->step || p.is_circular() || is_empty(p) || inputs.back().dtype() != mx::int64) return {};
  return tier->step({p, inputs, std::move(composed), s});
}

mx::array qk(const Caller& caller, const mx::array& query, const mx::array& key, const Neighborhood& neighborhood,
             const QkOptions& options) {
  const mx::Stream s = mx::to_stream(options.stream);
  const Problem p = validate_qk(caller, query, key, neighborhood, given_of(options, s.device));
  const std::int64_t additional = validate_additional_keys(caller, p, options.additional_keys);
  if (is_empty(p)) return mx::zeros(result_shape(p, {p.heads, p.kernel_volume() + additional}), query.dtype(), s);
  const std::optional<mx::array> lengths = checked_lengths(caller, p, options.lengths, s);
  const Arrays inputs =
      with_tables({canonical_query(p, query, options.scale, lengths, s), with_three_axes(key, p.rank, s)},
                  wide_rpb(p, options.rpb, s), lengths);
  mx::array logits = run_call(caller, p, inputs, s)[0];
  if (additional > 0) {
    const mx::array others = pure::dense_logits(p, inputs[0], *options.additional_keys, lengths, s);
    logits = mx::concatenate({logits, mx::astype(others, logits.dtype(), s)}, -1, s);
  }
  return with_rank_axes(logits, p.rank, s);
}

mx::array av(const Caller& caller, const mx::array& attn, const mx::array& value, const Neighborhood& neighborhood,
             const AvOptions& options) {
  const mx::Stream s = mx::to_stream(options.stream);
  const auto& others = options.additional_values;
  const std::int64_t additional = others && others->ndim() == 4 ? others->shape(1) : 0;
  Problem p = validate_av(caller, attn, value, neighborhood, given_of(options, s.device), additional);
  validate_additional_values(caller, p, others);
  if (is_empty(p)) return mx::zeros(result_shape(p, {p.heads, p.value_dim}), attn.dtype(), s);
  const std::optional<mx::array> lengths = checked_lengths(caller, p, options.lengths, s);
  Arrays inputs =
      with_tables({with_three_axes(attn, p.rank, s), with_three_axes(value, p.rank, s)}, std::nullopt, lengths);
  if (additional == 0) return with_rank_axes(run_call(caller, p, inputs, s)[0], p.rank, s);

  // The sum of both parts is rounded once: they are computed in the type of the sums.
  for (int tensor = 0; tensor < 2; ++tensor) inputs[tensor] = mx::astype(inputs[tensor], sum_type(p), s);
  const Arrays parts = mx::split(inputs[0], mx::Shape{static_cast<int>(p.kernel_volume())}, -1, s);
  inputs[0] = parts[0];
  const mx::array window = run_call(caller, pure::window_problem(p), inputs, s)[0];
  const mx::array sum = mx::add(window, pure::dense_values(p, parts[1], *others, lengths, s), s);
  return with_rank_axes(mx::astype(sum, attn.dtype(), s), p.rank, s);
}

std::pair<mx::array, mx::array> padding_masks(const Caller& caller, const mx::Shape& shape, const mx::array& lengths,
                                              const Neighborhood& neighborhood, mx::StreamOrDevice stream) {
  const mx::Stream s = mx::to_stream(stream);
  mx::Shape row = shape;  // one head of one channel
  row.insert(row.end(), {1, 1});
  const Spec spec(row, mx::float32);
  QkOptions options;
  options.lengths = lengths;
  const Problem p = validate_qk(caller, spec, spec, neighborhood, given_of(options, s.device));
  if (p.batch == 0) return {mx::zeros(shape, mx::bool_, s), mx::zeros(result_shape(p, {}), mx::bool_, s)};
  const Padding padding(p, checked_lengths(caller, p, lengths, s), s);
  return {with_rank_axes(*padding.token_mask(), p.rank, s), with_rank_axes(*padding.query_mask(), p.rank, s)};
}

AttentionResult attention(const mx::array& query, const mx::array& key, const mx::array& value,
                          const Neighborhood& neighborhood, const AttentionOptions& options) {
  return attention(caller_of(query, ""), query, key, value, neighborhood, options);
}

mx::array qk(const mx::array& query, const mx::array& key, const Neighborhood& neighborhood, const QkOptions& options) {
  return qk(caller_of(query, "_qk"), query, key, neighborhood, options);
}

mx::array av(const mx::array& attn, const mx::array& value, const Neighborhood& neighborhood,
             const AvOptions& options) {
  return av(caller_of(attn, "_av"), attn, value, neighborhood, options);
}

AttentionResult merge(const std::vector<mx::array>& outputs, const std::vector<mx::array>& lse_tensors,
                      mx::StreamOrDevice stream) {
  validate_merge(outputs, lse_tensors);
  const auto [out, lse] = pure::merge(outputs, lse_tensors, outputs[0].dtype(), mx::to_stream(stream));
  return {out, lse};
}

}  // namespace natten
