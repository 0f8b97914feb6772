// The pure tier: neighborhood attention as plain MLX operations, differentiated by MLX. It runs on every device and is
// the reference that other tiers are compared with, so it is written to be read. Also what compositions on top of any
// tier need: dense attention to additional tokens, and merging.
#pragma once

#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "definition/problem.h"
#include "mlx/array.h"
#include "mlx/stream.h"
#include "ops/tier.h"

namespace natten::pure {

/// The neighborhood as a dense mask [B, 1, queries, tokens], true where a query attends; of a floating type 0 there and
/// -inf elsewhere, or with rpb [B, Hq, queries, tokens] the bias.
mx::array mask(const Problem& problem, const std::optional<mx::array>& rpb, const std::optional<mx::array>& lengths,
               mx::Dtype dtype, mx::Stream s);

/// int32 [B, 3] with 0 for samples whose axes may not have such lengths, or whose windows have keys that the call's
/// arrays do not hold: for lengths that could not be checked when the call was made.
mx::array legal_lengths(const Problem& problem, const mx::array& lengths, mx::Stream s);

/// The window of a call with extra tokens, in the type of the sums.
Problem window_problem(Problem problem);

/// A forward with extra tokens out of two attentions, whose softmax a merge in the type of the sums makes one: that of
/// the window, which `window` computes, and a dense one. extra_key and extra_value may have any types. -> out, lse
std::vector<mx::array> with_extra_tokens(
    const Call& call,
    const std::function<std::vector<mx::array>(const Problem&, const std::vector<mx::array>&)>& window);

/// Role::backward_extra: gradients of extra_key and extra_value from the lse and the out of the whole.
std::vector<mx::array> extra_gradients(const Call& call);

/// Every computed query attends all of `keys` [B or 1, N, Hkv, D] and `values` [B or 1, N, Hkv, Dv] -> out, lse;
/// queries in the padding and samples of illegal lengths give zeros.
std::pair<mx::array, mx::array> dense_attention(const Problem& problem, const mx::array& query, const mx::array& keys,
                                                const mx::array& values, const std::optional<mx::array>& lengths,
                                                mx::Stream s);

/// Logits of every computed query with `keys` [B or 1, N, Hkv, D]: [B, O0, O1, O2, Hq, N] in the type of the sums, 0
/// for queries in the padding.
mx::array dense_logits(const Problem& problem, const mx::array& query, const mx::array& keys,
                       const std::optional<mx::array>& lengths, mx::Stream s);

/// Weighted sum of `values` [B or 1, N, Hkv, Dv] for weights [B, O0, O1, O2, Hq, N]: [B, O0, O1, O2, Hq, Dv] in the
/// type of the sums, 0 for queries in the padding.
mx::array dense_values(const Problem& problem, const mx::array& weights, const mx::array& values,
                       const std::optional<mx::array>& lengths, mx::Stream s);

/// Joins attentions over disjoint keys. out in `out_dtype`, lse in float32 or float64.
std::pair<mx::array, mx::array> merge(const std::vector<mx::array>& outputs, const std::vector<mx::array>& lse_tensors,
                                      mx::Dtype out_dtype, mx::Stream s);

}  // namespace natten::pure

namespace natten {

Tier pure_tier();

}  // namespace natten
