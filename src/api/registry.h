// The tiers of this process and the choice between them.
#pragma once

#include <array>
#include <functional>
#include <string>

#include "ops/tier.h"
#include "ops/validate.h"

namespace natten {

/// In order of preference: compiled, JIT, pure.
std::array<TierPtr, 3> tiers();

/// The last of them, which takes every call and is differentiated by MLX.
TierPtr reference_tier();

/// Replaces the in-tree compiled tier (NATTEN_MLX_NANOBIND_MODULE).
void replace_compiled_tier(Tier tier);

/// NATTEN_STRICT. Throws std::invalid_argument for what is neither 0 nor 1.
bool is_strict();

/// The tier that runs `problem`, by the chosen backend. Throws std::runtime_error where NATTEN_STRICT forbids the
/// fallback that would be needed. Says the first fallback for each reason.
TierPtr choose_tier(const Caller& caller, const Problem& problem);

/// Why each tier that is preferred to the one chosen by `choose_tier` does not run `problem`.
struct Choice {
  TierPtr tier;
  std::vector<std::pair<std::string, std::string>> declined;
};
Choice explain_choice(const Caller& caller, const Problem& problem);

/// The two ends of a BackendScope: what the first returns, the second takes.
std::string enter_backend(const std::string& name);
void leave_backend(std::string outer);

/// Where fallbacks are told; the default writes to standard error.
void set_fallback_logger(std::function<void(const std::string&)> logger);

}  // namespace natten
