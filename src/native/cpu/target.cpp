#include "native/cpu/target.h"

#include <cstdlib>
#include <stdexcept>

#include "native/cpu/dispatch.h"

namespace natten::cpu {
namespace {

std::int64_t targets_with_name(const std::string& name) {
  std::string names;
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
    if (name == hwy::TargetName(target)) return target;
    names += names.empty() ? "" : ", ";
    names += hwy::TargetName(target);
  }
  throw std::invalid_argument("Unknown NATTEN_CPU_TARGET '" + name + "'. Expected one of [" + names + "]");
}

std::string default_name() {
  const char* name = std::getenv("NATTEN_CPU_TARGET");
  return name == nullptr ? "" : name;
}

struct Choice {
  hwy::ChosenTarget chosen;
  std::string name;

  Choice() { choose(default_name()); }

  void choose(const std::string& wanted) {
    const std::int64_t targets = wanted.empty() ? hwy::SupportedTargets() : targets_with_name(wanted);
    chosen.Update(targets);
    name = wanted.empty() ? cpu_targets().front() : wanted;
  }
};

Choice& choice() {
  static Choice choice;
  return choice;
}

}  // namespace

std::vector<std::string> cpu_targets() {
  std::vector<std::string> names;
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) names.emplace_back(hwy::TargetName(target));
  return names;
}

std::string cpu_target() {
  return choice().name;
}

void set_cpu_target(const std::string& name) {
  choice().choose(name.empty() ? default_name() : name);
}

hwy::ChosenTarget& chosen_target() {
  return choice().chosen;
}

}  // namespace natten::cpu
