// Dense attention, every query to every key: MLX's own where it gives the same, elsewhere a neighborhood call whose
// window is as long as the key axis.
#include "api/entry.h"
#include "mlx/fast.h"
#include "mlx/ops.h"

namespace natten {

namespace {

// The rules of a neighborhood call, of as many queries as there are keys.
Problem validate_dense(const Caller& caller, const mx::array& query, const mx::array& key, const mx::array& value,
                       const DenseOptions& options, mx::Device device) {
  mx::Shape queries = query.shape();
  const bool has_axes = query.ndim() == 4 && key.ndim() == 4 && query.shape(1) > 0 && key.shape(1) > 0;
  if (has_axes) queries[1] = key.shape(1);
  const std::int64_t window = has_axes ? key.shape(1) : 1;
  AttentionOptions whole;
  whole.scale = options.scale;
  const Problem p = validate_attention(caller, Spec(queries, query.dtype()), key, value, {.kernel_size = window},
                                       given_of(whole, device));
  if (options.is_causal && query.shape(1) > key.shape(1)) {
    fail(caller, "causal attention must have at most as many queries as keys, got " + std::to_string(query.shape(1)) +
                     " and " + std::to_string(key.shape(1)));
  }
  return p;
}

mx::array heads_first(const mx::array& x, mx::Stream s) {
  return mx::transpose(x, {0, 2, 1, 3}, s);
}

// MLX has kernels for GPUs. On a CPU it composes operations, which took 14 to 32 times as long as the compiled tier for
// 64 to 1024 tokens (Linux, MLX 0.32.4).
bool is_for_mlx(const mx::array& query, const mx::array& key, const mx::array& value, bool return_lse,
                mx::Device device) {
  const bool same_type = query.dtype() == key.dtype() && query.dtype() == value.dtype();
  return device == mx::Device::gpu && !return_lse && same_type;
}

mx::array by_mlx(const mx::array& query, const mx::array& key, const mx::array& value, double scale, bool is_causal,
                 mx::Stream s) {
  const mx::array out =
      mx::fast::scaled_dot_product_attention(heads_first(query, s), heads_first(key, s), heads_first(value, s),
                                             static_cast<float>(scale), is_causal ? "causal" : "", {}, {}, false, s);
  return heads_first(out, s);
}

// More queries than keys are further heads of the same keys, chunk by chunk: [B, L, Hkv * G, D] -> [B, rows, Hkv *
// chunks * G, D], behind the queries zeros.
mx::array chunks_as_heads(const mx::array& query, int kv_heads, int chunks, int rows, mx::Stream s) {
  const int missing = chunks * rows - query.shape(1);
  const mx::array padded =
      mx::pad(query, {{0, 0}, {0, missing}, {0, 0}, {0, 0}}, mx::array(0, query.dtype()), "constant", s);
  const mx::array split = mx::unflatten(mx::unflatten(padded, 2, {kv_heads, -1}, s), 1, {chunks, rows}, s);
  return mx::flatten(mx::transpose(split, {0, 2, 3, 1, 4, 5}, s), 2, 4, s);
}

// [B, rows, Hkv * chunks * G, ...] -> [B, length, Hkv * G, ...]
mx::array heads_as_chunks(const mx::array& x, int kv_heads, int chunks, int length, mx::Stream s) {
  const mx::array split = mx::moveaxis(mx::unflatten(x, 2, {kv_heads, chunks, -1}, s), 3, 1, s);
  const mx::array all = mx::flatten(mx::flatten(split, 3, 4, s), 1, 2, s);
  mx::Shape stop = all.shape();
  stop[1] = length;
  return mx::slice(all, mx::Shape(all.ndim(), 0), stop, s);
}

}  // namespace

DenseResult dense_attention(const Caller& caller, const mx::array& query, const mx::array& key, const mx::array& value,
                            const DenseOptions& options) {
  const mx::Stream s = mx::to_stream(options.stream);
  const Problem p = validate_dense(caller, query, key, value, options, s.device);
  const mx::array q = scaled(query, options.scale, s);
  if (p.batch > 0 && is_for_mlx(query, key, value, options.return_lse, s.device)) {
    return {by_mlx(q, key, value, p.scale, options.is_causal, s), std::nullopt};
  }
  const int queries = query.shape(1), keys = key.shape(1), kv_heads = key.shape(2);
  const int chunks = (queries + keys - 1) / keys, rows = (queries + chunks - 1) / chunks;
  AttentionOptions call;
  call.scale = p.scale;
  call.stream = s;
  call.query_start = options.is_causal ? keys - queries : 0;
  call.shape = keys;
  const Neighborhood neighborhood{.kernel_size = keys, .is_causal = options.is_causal};
  if (chunks == 1) {
    const auto [out, lse] = attention(caller, q, key, value, neighborhood, call);
    return {out, options.return_lse ? std::optional(lse) : std::nullopt};
  }
  const auto [out, lse] =
      attention(caller, chunks_as_heads(q, kv_heads, chunks, rows, s), key, value, neighborhood, call);
  const auto by_query = [&](const mx::array& x) { return heads_as_chunks(x, kv_heads, chunks, queries, s); };
  return {by_query(out), options.return_lse ? std::optional(by_query(lse)) : std::nullopt};
}

DenseResult dense_attention(const mx::array& query, const mx::array& key, const mx::array& value,
                            const DenseOptions& options) {
  return dense_attention({"dense_attention", 1}, query, key, value, options);
}

}  // namespace natten
