// The operations under the name of the function that was called: what the bindings use, so that errors name it.
#pragma once

#include "natten/attention.h"
#include "natten/tiers.h"
#include "ops/validate.h"

namespace natten {

AttentionResult attention(const Caller& caller, const mx::array& query, const mx::array& key, const mx::array& value,
                          const Neighborhood& neighborhood, const AttentionOptions& options);
mx::array qk(const Caller& caller, const mx::array& query, const mx::array& key, const Neighborhood& neighborhood,
             const QkOptions& options);
mx::array av(const Caller& caller, const mx::array& attn, const mx::array& value, const Neighborhood& neighborhood,
             const AvOptions& options);

/// What a tier gets of an attention with additional tokens: its window, in the type of the sums.
Problem window_problem(Problem problem);

mx::array neighborhood_mask(const Caller& caller, const mx::Shape& shape, const Neighborhood& neighborhood,
                            const MaskOptions& options);

/// Masks of padded samples, bool [B, spatial...] and [B, ceil(L/s)...]: where tokens and where queries are not padding.
/// What modules need around the operation. `shape` is [B, spatial...].
std::pair<mx::array, mx::array> padding_masks(const Caller& caller, const mx::Shape& shape, const mx::array& lengths,
                                              const Neighborhood& neighborhood, mx::StreamOrDevice stream);

}  // namespace natten
