#include "ops/registry.h"

#include <cstdlib>
#include <iostream>
#include <mutex>
#include <set>
#include <stdexcept>

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
  std::string backend() {
    const std::lock_guard lock(mutex_);
    return backend_;
  }
  void set_backend(const std::string& name) {
    std::string canonical = canonical_name(name);
    const std::lock_guard lock(mutex_);
    backend_ = std::move(canonical);
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
  Registry() {
    const char* name = std::getenv("NATTEN_BACKEND");
    if (!name || !*name) return;
    try {
      backend_ = canonical_name(name);
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(std::string("NATTEN_BACKEND: ") + error.what());
    }
  }

  std::mutex mutex_;
  std::array<TierPtr, 3> tiers_{std::make_shared<const Tier>(compiled_tier()),
                                std::make_shared<const Tier>(fast_tier()), std::make_shared<const Tier>(pure_tier())};
  std::string backend_ = kAuto;
  std::set<std::string> logged_;
  std::function<void(const std::string&)> logger_ = [](const std::string& message) {
    std::cerr << "natten: " << message << '\n';
  };
};

bool is_strict() {
  const char* value = std::getenv("NATTEN_STRICT");
  return value && *value && std::string_view(value) != "0";
}

bool is_named(const Tier& tier, const std::string& backend) {
  return tier.name == backend || (backend == kFast && tier.name == kFastCuda);
}

Objection objection(const Tier& tier, const Problem& problem) {
  if (Objection reason = tier.unavailable()) return reason;
  return tier.supports(problem);
}

struct Candidates {
  std::array<TierPtr, 3> tiers;
  std::size_t first = 0;  // earlier ones are not preferred by the backend
  bool is_explicit = false;
};

Candidates candidates() {
  Candidates result{Registry::instance().tiers()};
  const std::string backend = Registry::instance().backend();
  result.is_explicit = backend != kAuto;
  while (result.is_explicit && result.first + 1 < result.tiers.size() &&
         !is_named(*result.tiers[result.first], backend)) {
    ++result.first;
  }
  return result;
}

}  // namespace

std::array<TierPtr, 3> tiers() {
  return Registry::instance().tiers();
}

void replace_compiled_tier(Tier tier) {
  Registry::instance().replace_compiled(std::move(tier));
}

TierPtr choose_tier(const Caller& caller, const Problem& problem) {
  const Candidates all = candidates();
  for (std::size_t i = all.first; i < all.tiers.size(); ++i) {
    const Objection reason = objection(*all.tiers[i], problem);
    if (!reason) return all.tiers[i];
    if (!all.is_explicit) continue;
    const std::string declined = "tier '" + all.tiers[i]->name + "' cannot run this call: " + *reason;
    if (is_strict()) throw std::runtime_error("[" + caller.name + "] NATTEN_STRICT is set and " + declined);
    if (i + 1 < all.tiers.size()) Registry::instance().log_once(declined + "; falling back to the next tier");
  }
  fail(caller, "no tier can run this call");
}

Choice explain_choice(const Problem& problem) {
  const Candidates all = candidates();
  Choice choice;
  for (std::size_t i = 0; i < all.tiers.size(); ++i) {
    const Objection reason = i < all.first ? Objection("the backend '" + Registry::instance().backend() + "' is chosen")
                                           : objection(*all.tiers[i], problem);
    if (!reason) {
      choice.tier = all.tiers[i];
      break;
    }
    choice.declined.emplace_back(all.tiers[i]->name, *reason);
  }
  return choice;
}

void set_fallback_logger(std::function<void(const std::string&)> logger) {
  Registry::instance().set_logger(std::move(logger));
}

void set_backend(const std::string& name) {
  Registry::instance().set_backend(name);
}

std::string get_backend() {
  const std::string backend = Registry::instance().backend();
  if (backend != kAuto) return backend;
  Problem plain;
  plain.device = mx::default_device() == mx::Device::gpu ? DeviceType::gpu : DeviceType::cpu;
  plain.batch = plain.heads = plain.kv_heads = plain.head_dim = plain.value_dim = 1;
  plain.axes.fill(Axis{1, 1, 1, 1, 1, false});
  return explain_choice(plain).tier->name;
}

}  // namespace natten
