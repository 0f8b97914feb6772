// The operations of a tier with their derivatives: which backward answers which gradient, and what stands in for a
// derivative that no kernel has.
#pragma once

#include <memory>
#include <optional>
#include <utility>

#include "ops/differentiable.h"
#include "ops/tier.h"

namespace natten {

using TierPtr = std::shared_ptr<const Tier>;

/// Canonical arrays in, canonical (out, lse) out; differentiable and mappable on every tier.
std::pair<mx::array, mx::array> run_attention(const TierPtr& tier, const Problem& problem,
                                              const AttentionInputs& inputs, mx::Stream s);
mx::array run_qk(const TierPtr& tier, const Problem& problem, const mx::array& query, const mx::array& key,
                 const std::optional<mx::array>& rpb, const std::optional<mx::array>& lengths, mx::Stream s);
mx::array run_av(const TierPtr& tier, const Problem& problem, const mx::array& attn, const mx::array& value,
                 const std::optional<mx::array>& lengths, mx::Stream s);

}  // namespace natten
