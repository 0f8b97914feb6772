// Which SIMD instruction set the kernels use: Highway compiles each kernel once per target, the machine or
// NATTEN_CPU_TARGET picks one at run time.
#pragma once

#include <string>
#include <vector>

namespace natten::cpu {

/// Names of the targets that this build holds and this machine can run, best first.
std::vector<std::string> cpu_targets();

/// The target in use.
std::string cpu_target();

/// Makes the kernels use a target; an empty name returns to the default. Throws std::invalid_argument, listing the
/// names, when the name is none of cpu_targets(). Not to be called while kernels run.
void set_cpu_target(const std::string& name);

}  // namespace natten::cpu
