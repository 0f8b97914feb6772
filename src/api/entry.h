// The operations under the name of the function that was called: what the bindings use, so that errors name it.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "natten/attention.h"
#include "natten/tiers.h"
#include "ops/tier.h"
#include "ops/validate.h"

namespace natten {

AttentionResult attention(const Caller& caller, const mx::array& query, const mx::array& key, const mx::array& value,
                          const Neighborhood& neighborhood, const AttentionOptions& options);
/// Rows of key and value of which the first ones and the last ones along an axis of the arrays lie apart; each of the
/// three is a key and a value. Nothing is copied where the tier takes it so.
struct ApartKeys {
  std::vector<mx::array> before, own, after;
  int axis = 1;
};
AttentionResult attention(const Caller& caller, const mx::array& query, const ApartKeys& keys,
                          const Neighborhood& neighborhood, const AttentionOptions& options);
mx::array qk(const Caller& caller, const mx::array& query, const mx::array& key, const Neighborhood& neighborhood,
             const QkOptions& options);
mx::array av(const Caller& caller, const mx::array& attn, const mx::array& value, const Neighborhood& neighborhood,
             const AvOptions& options);

DenseResult dense_attention(const Caller& caller, const mx::array& query, const mx::array& key, const mx::array& value,
                            const DenseOptions& options);

/// Query times a scale that is an array; query where it is none.
mx::array scaled(const mx::array& query, const std::optional<Scale>& scale, mx::Stream s);

/// A step of decoding as one kernel: the arguments and results of a StepCall, scale a number. Nothing where the tier of
/// the call has no such kernel.
std::optional<std::vector<mx::array>> decoding_step(
    const Caller& caller, std::vector<mx::array> inputs, const Neighborhood& neighborhood,
    const std::optional<Scale>& scale, std::function<std::vector<mx::array>(const std::vector<mx::array>&)> composed);

/// What a tier gets of an attention with `additional` tokens: all of it where one has a kernel for that (or the given
/// one has), which takes them in the types of key and value; else its window alone.
Problem with_additional(const Caller& caller, Problem problem, std::int64_t additional, Spec keys, Spec values,
                        TierPtr tier = {});

/// A described call that would raise nothing.
struct ValidatedCall {
  Caller caller;
  Problem problem;              ///< that a tier gets
  std::int64_t additional = 0;  ///< tokens, which are MLX's operations where the problem has none
};
/// `gpu_tier`: as if it ran the call on a GPU.
ValidatedCall validated(const CallDescription& call, const Neighborhood& neighborhood, const TierPtr& gpu_tier = {});

mx::array neighborhood_mask(const Caller& caller, const mx::Shape& shape, const Neighborhood& neighborhood,
                            const MaskOptions& options);

/// Masks of padded samples, bool [B, spatial...] and [B, ceil(L/s)...]: where tokens and where queries are not padding.
/// What modules need around the operation. `shape` is [B, spatial...].
std::pair<mx::array, mx::array> padding_masks(const Caller& caller, const mx::Shape& shape, const mx::array& lengths,
                                              const Neighborhood& neighborhood, mx::StreamOrDevice stream);

}  // namespace natten
