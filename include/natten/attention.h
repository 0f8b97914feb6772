// Neighborhood attention on MLX arrays.
//
// Arrays are heads last: [B, L, H, D], [B, H, W, heads, D] or [B, D, H, W, heads, D]; the rank is read off the query.
// Wrong arguments throw std::invalid_argument before any graph node is made. Every function is lazy, differentiable
// with respect to each floating array, and may be traced by compile and vmap.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "mlx/array.h"
#include "mlx/utils.h"
#include "natten/neighborhood.h"

namespace natten {

namespace mx = mlx::core;

/// Factor of the logits: a number, or an array of one element or of one per query head, which is multiplied into query
/// (in float32, then rounded to query's dtype) and is differentiable.
struct Scale {
  Scale(double value) : number(value) {}
  Scale(mx::array values) : array(std::move(values)) {}

  double number = 1.0;  ///< finite in float32
  std::optional<mx::array> array;
};

struct AttentionOptions {
  std::optional<Scale> scale;                  ///< of the logits; default D^-0.5
  std::optional<mx::array> additional_keys;    ///< [B or 1, N, Hkv, D], attended by every query besides its window
  std::optional<mx::array> additional_values;  ///< [B or 1, N, Hkv, Dv]
  std::optional<mx::array> rpb;                ///< relative position bias [Hq, 2*K-1, ...], added to the logits
  std::optional<mx::array> lengths;            ///< int32 or int64 [B] (1-D) or [B, rank]: tokens of each padded sample
  mx::StreamOrDevice stream = {};
  PerAxis<std::int64_t> query_start = 0;            ///< position of row 0 of query on each axis (a span)
  PerAxis<std::int64_t> key_start = 0;              ///< of row 0 of key and value; may be negative on a circular axis
  std::optional<PerAxis<std::int64_t>> shape = {};  ///< lengths of the whole axes; default those of query
};

struct AttentionResult {
  mx::array out;  ///< [B, ceil(L/s)..., Hq, Dv], dtype of query
  mx::array lse;  ///< [B, ceil(L/s)..., Hq]: natural log of the sum of exponentials, float32 (float64 for float64)
};

/// softmax(scale * query.key + rpb) . value over the neighborhood of each query.
AttentionResult attention(const mx::array& query, const mx::array& key, const mx::array& value,
                          const Neighborhood& neighborhood, const AttentionOptions& options = {});

struct QkOptions {
  std::optional<Scale> scale;
  std::optional<mx::array> rpb;
  std::optional<mx::array> lengths;
  mx::StreamOrDevice stream = {};
  std::optional<mx::array> additional_keys = {};  ///< [B or 1, N, Hkv, D], whose slots come last
  PerAxis<std::int64_t> query_start = 0;          ///< a span, as in AttentionOptions
  PerAxis<std::int64_t> key_start = 0;
  std::optional<PerAxis<std::int64_t>> shape = {};
};

/// Logits [B, ceil(L/s)..., Hq, prod(K) + N]; slots row-major, empty (causal) slots -inf.
mx::array qk(const mx::array& query, const mx::array& key, const Neighborhood& neighborhood,
             const QkOptions& options = {});

struct AvOptions {
  std::optional<mx::array> lengths;
  mx::StreamOrDevice stream = {};
  std::optional<mx::array> additional_values = {};  ///< [B or 1, N, Hkv, Dv]
  PerAxis<std::int64_t> query_start = 0;  ///< a span, as in AttentionOptions; attn has a row for each computed query
  PerAxis<std::int64_t> key_start = 0;
  std::optional<PerAxis<std::int64_t>> shape = {};  ///< default: the axes of value
};

/// Weighted sum of values, [B, ceil(L/s)..., Hq, Dv], for weights laid out like the logits of `qk`.
mx::array av(const mx::array& attn, const mx::array& value, const Neighborhood& neighborhood,
             const AvOptions& options = {});

struct DenseOptions {
  std::optional<Scale> scale;  ///< of the logits; default D^-0.5
  bool is_causal = false;      ///< query i is position Lk - Lq + i and attends keys up to it; Lq <= Lk
  bool return_lse = false;
  mx::StreamOrDevice stream = {};
};

struct DenseResult {
  mx::array out;                 ///< [B, Lq, Hq, Dv], dtype of query
  std::optional<mx::array> lse;  ///< [B, Lq, Hq], as in AttentionResult; where asked for
};

/// Attention of every query to every key: query [B, Lq, Hq, D], key [B, Lk, Hkv, D], value [B, Lk, Hkv, Dv].
/// On a GPU it is MLX's own, unless lse is asked for or types are mixed; elsewhere this library's kernels.
DenseResult dense_attention(const mx::array& query, const mx::array& key, const mx::array& value,
                            const DenseOptions& options = {});

struct MaskOptions {
  std::optional<mx::array> rpb;      ///< with a floating dtype
  std::optional<mx::array> lengths;  ///< int32 or int64 [B] (1-D) or [B, rank]
  mx::Dtype dtype = mx::bool_;       ///< or a floating type: 0 where attended, -inf elsewhere
  mx::StreamOrDevice stream = {};
  PerAxis<std::int64_t> query_start = 0;                 ///< first row of the mask on each axis
  std::optional<PerAxis<std::int64_t>> query_rows = {};  ///< default: the rest of the axis
  PerAxis<std::int64_t> key_start = 0;                   ///< first column; may be negative on a circular axis
  std::optional<PerAxis<std::int64_t>> key_rows = {};    ///< default: the rest of the axis, all of a circular one
};

/// The neighborhood on axes of lengths `shape` as a dense mask [queries, keys], both row-major, for checks and for
/// dense attention: true where the query attends the key. [Hq, queries, keys] with rpb, whose values are added;
/// [B, 1 or Hq, queries, keys] with lengths, where queries in the padding attend nothing.
mx::array neighborhood_mask(const mx::Shape& shape, const Neighborhood& neighborhood, const MaskOptions& options = {});

/// Joins partial attentions over disjoint key sets (two or more, equal shapes) into the attention over their union.
/// out has outputs[0]'s dtype. Where every lse is -inf: out 0, lse -inf.
AttentionResult merge(const std::vector<mx::array>& outputs, const std::vector<mx::array>& lse_tensors,
                      mx::StreamOrDevice stream = {});

}  // namespace natten
