#include "native/cpu/target.h"

#include <cstdlib>
#include <stdexcept>

#include "native/cpu/dispatch.h"

namespace natten::cpu {
namespace {

struct Target {
  std::string name;
  std::int64_t simd;  ///< Highway's
  MatrixUnit unit;
};

/// Best first. The dot products of AVX512-BF16 have to be asked for: on Intel's CPUs they take twice as long as the
/// float32 ones.
std::vector<Target> all_targets() {
  std::vector<Target> targets;
  for (const std::int64_t simd : hwy::SupportedAndGeneratedTargets()) {
    targets.push_back({hwy::TargetName(simd), simd, MatrixUnit::none});
    if (simd != HWY_AVX3) continue;
    if (has_matrix_unit(MatrixUnit::dot)) targets.push_back({"AVX3_BF16", simd, MatrixUnit::dot});
    if (has_matrix_unit(MatrixUnit::amx)) targets.insert(targets.begin(), {"AMX", simd, MatrixUnit::amx});
  }
  return targets;
}

Target target_with_name(const std::string& name) {
  std::string names;
  for (const Target& target : all_targets()) {
    if (name == target.name) return target;
    names += names.empty() ? "" : ", ";
    names += target.name;
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
  MatrixUnit unit;

  Choice() { choose(default_name()); }

  void choose(const std::string& wanted) {
    const Target target = wanted.empty() ? all_targets().front() : target_with_name(wanted);
    chosen.Update(target.simd);
    name = target.name;
    unit = target.unit;
  }
};

Choice& choice() {
  static Choice choice;
  return choice;
}

}  // namespace

std::vector<std::string> cpu_targets() {
  std::vector<std::string> names;
  for (const Target& target : all_targets()) names.push_back(target.name);
  return names;
}

std::string cpu_target() {
  return choice().name;
}

MatrixUnit matrix_unit() {
  return choice().unit;
}

void set_cpu_target(const std::string& name) {
  choice().choose(name.empty() ? default_name() : name);
}

hwy::ChosenTarget& chosen_target() {
  return choice().chosen;
}

}  // namespace natten::cpu
