// Which instruction set the kernels use: Highway compiles each kernel once per SIMD target, the machine or
// NATTEN_CPU_TARGET picks one at run time. A target with a matrix unit ("AMX", "AVX3_BF16") is AVX3, and products of
// bfloat16 on that unit.
#pragma once

#include <string>
#include <vector>

#include "native/cpu/matrix_unit.h"

namespace natten::cpu {

/// Names of the targets that this build holds and this machine can run, best first.
std::vector<std::string> cpu_targets();

/// The target in use.
std::string cpu_target();

/// The matrix unit of the target in use.
MatrixUnit matrix_unit();

/// Makes the kernels use a target; an empty name returns to the default. Throws std::invalid_argument, listing the
/// names, when the name is none of cpu_targets(). Not to be called while kernels run.
void set_cpu_target(const std::string& name);

}  // namespace natten::cpu
