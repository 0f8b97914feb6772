#include "api/registry.h"

#include <cstdlib>
#include <iostream>
#include <mutex>
#include <set>
#include <stdexcept>
#include <utility>

#include "fast/compiler.h"
#include "graph/exportable.h"
#include "mlx/device.h"
#include "natten/tiers.h"
#include "pure/pure.h"

namespace natten {

// Defined by the folder of each tier.
Tier compiled_tier();
Tier fast_tier();

namespace {

constexpr const char* kAuto = "auto";

std::string canonical_name(const std::string& name) {
  if (name == kFastCuda) return kFast;
  if (name == kAuto || name == kPure || name == kFast || name == kCompiled) return name;
  throw std::invalid_argument("Unknown backend '" + name +
                              "'. Expected one of ['auto', 'pure', 'fast_metal', 'nanobind']");
}

// The backend of the innermost BackendScope of this thread; empty where there is none.
thread_local std::string scoped_backend;

class Registry {
 public:
  static Registry& instance() {
    static Registry registry;
    return registry;
  }

  std::array<TierPtr, 3> tiers() {
    const std::lock_guard lock(mutex_);
    return tiers_;
  }
  void replace_compiled(Tier tier) {
    const std::lock_guard lock(mutex_);
    tiers_[0] = std::make_shared<const Tier>(std::move(tier));
  }
  /// The chosen one, or NATTEN_BACKEND's: throws std::invalid_argument for an unknown name there until one is chosen.
  std::string backend() {
    if (!scoped_backend.empty()) return scoped_backend;
    const std::lock_guard lock(mutex_);
    if (backend_.empty()) backend_ = backend_of_environment();
    return backend_;
  }
  void set_backend(const std::string& name) {
    std::string canonical = canonical_name(name);
    const std::lock_guard lock(mutex_);
    (scoped_backend.empty() ? backend_ : scoped_backend) = std::move(canonical);
  }
  void set_logger(std::function<void(const std::string&)> logger) {
    const std::lock_guard lock(mutex_);
    logger_ = std::move(logger);
  }
  void log_once(const std::string& message) {
    std::function<void(const std::string&)> logger;
    {
      const std::lock_guard lock(mutex_);
      if (!logged_.insert(message).second) return;
      logger = logger_;
    }
    logger(message);  // outside the lock: Python's logger may call back
  }

 private:
  static std::string backend_of_environment() {
    const char* name = std::getenv("NATTEN_BACKEND");
    if (!name || !*name) return kAuto;
    try {
      return canonical_name(name);
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(std::string("NATTEN_BACKEND: ") + error.what());
    }
  }

  std::mutex mutex_;
  std::array<TierPtr, 3> tiers_{std::make_shared<const Tier>(compiled_tier()),
                                std::make_shared<const Tier>(fast_tier()), std::make_shared<const Tier>(pure_tier())};
  std::string backend_;
  std::set<std::string> logged_;
  std::function<void(const std::string&)> logger_ = [](const std::string& message) {
    std::cerr << "natten: " << message << '\n';
  };
};

bool is_named(const Tier& tier, const std::string& backend) {
  return tier.name == backend || (backend == kFast && tier.name == kFastCuda);
}

Objection objection_now(const Tier& tier, const Problem& problem) {
  if (Objection reason = tier.unavailable()) return reason;
  return objection(tier, problem);
}

struct Candidates {
  std::array<TierPtr, 3> tiers;
  std::string backend;
  std::size_t first = 0;  // earlier ones are not preferred by the backend

  bool is_explicit() const { return backend != kAuto; }
};

Candidates candidates() {
  Candidates result{Registry::instance().tiers(), is_exporting() ? kPure : Registry::instance().backend()};
  while (result.is_explicit() && result.first + 1 < result.tiers.size() &&
         !is_named(*result.tiers[result.first], result.backend)) {
    ++result.first;
  }
  return result;
}

Problem plain_problem(DeviceType device) {
  Problem p;
  p.device = device;
  p.batch = p.heads = p.kv_heads = p.head_dim = p.value_dim = 1;
  p.axes.fill(Axis{1, 1, 1, 1, 1, false});
  return p;
}

// The first tier from `all.first` on that runs `problem`, or none; `decline` hears of the others.
template <class Decline>
std::size_t first_to_accept(const Candidates& all, const Problem& problem, Decline&& decline) {
  std::size_t i = all.first;
  for (; i < all.tiers.size(); ++i) {
    const Objection reason = objection_now(*all.tiers[i], problem);
    if (!reason) break;
    decline(i, *reason);
  }
  return i;
}

// What "auto" passes over because it is made for other devices is no fallback; what ends on the last tier is one.
bool is_fallback(const Candidates& all, const Problem& problem, std::size_t chosen) {
  if (chosen == all.first) return false;
  if (all.is_explicit() || chosen + 1 == all.tiers.size()) return true;
  return first_to_accept(all, plain_problem(problem.device), [](std::size_t, const std::string&) {}) < chosen;
}

[[noreturn]] void fail_without_tier(const Caller& caller, const std::string& reason) {
  fail(caller, "no tier can run this call: " + reason);
}

}  // namespace

bool is_strict() {
  const char* value = std::getenv("NATTEN_STRICT");
  const std::string_view text = value ? value : "";
  if (text != "" && text != "0" && text != "1") {
    throw std::invalid_argument("NATTEN_STRICT must be 0 or 1, got '" + std::string(text) + "'");
  }
  return text == "1";
}

std::array<TierPtr, 3> tiers() {
  return Registry::instance().tiers();
}

TierPtr reference_tier() {
  static const TierPtr tier = Registry::instance().tiers().back();
  return tier;
}

void replace_compiled_tier(Tier tier) {
  Registry::instance().replace_compiled(std::move(tier));
}

TierPtr choose_tier(const Caller& caller, const Problem& problem) {
  const Candidates all = candidates();
  std::array<std::string, 3> reasons;
  const auto told = [&](std::size_t i) {
    return "tier '" + all.tiers[i]->name + "' cannot run this call: " + reasons[i];
  };
  const std::size_t chosen = first_to_accept(all, problem, [&](std::size_t i, const std::string& reason) {
    reasons[i] = reason;
    if (all.is_explicit() && is_strict() && i + 1 < all.tiers.size()) {
      throw std::runtime_error("[" + caller.name + "] NATTEN_STRICT is set and " + told(i));
    }
  });
  if (chosen == all.tiers.size()) fail_without_tier(caller, reasons.back());
  if (is_fallback(all, problem, chosen)) {
    std::string message;
    for (std::size_t i = all.first; i < chosen; ++i) message += told(i) + "; ";
    Registry::instance().log_once("[" + caller.name + "] " + message + "falling back to tier '" +
                                  all.tiers[chosen]->name + "'");
  }
  return all.tiers[chosen];
}

Choice explain_choice(const Caller& caller, const Problem& problem) {
  const Candidates all = candidates();
  Choice choice;
  const std::string why_not_asked = is_exporting() ? "calls inside exportable() are made of MLX's operations"
                                                   : "the backend '" + all.tiers[all.first]->name + "' is chosen";
  for (std::size_t i = 0; i < all.first; ++i) choice.declined.emplace_back(all.tiers[i]->name, why_not_asked);
  const std::size_t chosen = first_to_accept(all, problem, [&](std::size_t i, const std::string& reason) {
    choice.declined.emplace_back(all.tiers[i]->name, reason);
  });
  if (chosen == all.tiers.size()) fail_without_tier(caller, choice.declined.back().second);
  choice.tier = all.tiers[chosen];
  return choice;
}

void set_fallback_logger(std::function<void(const std::string&)> logger) {
  fast::set_compiler_logger(logger);
  Registry::instance().set_logger(std::move(logger));
}

void set_backend(const std::string& name) {
  Registry::instance().set_backend(name);
}

std::string enter_backend(const std::string& name) {
  return std::exchange(scoped_backend, canonical_name(name));
}

void leave_backend(std::string outer) {
  scoped_backend = std::move(outer);
}

BackendScope::BackendScope(const std::string& name) : outer_(enter_backend(name)) {}

BackendScope::~BackendScope() {
  leave_backend(std::move(outer_));
}

std::string get_backend() {
  const Candidates all = candidates();
  if (all.is_explicit()) return all.tiers[all.first]->name;
  const bool is_gpu = mx::default_device() == mx::Device::gpu;
  return explain_choice({"get_backend", 1}, plain_problem(is_gpu ? DeviceType::gpu : DeviceType::cpu)).tier->name;
}

}  // namespace natten
