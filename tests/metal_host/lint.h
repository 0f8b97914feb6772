// Does the text of a kernel mean what Metal Shading Language demands? Two checks by clang, for syntax and types only.
#pragma once

#include <string>

#include "fast/kernel_source.h"
#include "kernel_text.h"

namespace natten::metal_host {

// Both return clang's complaints, empty when it has none, and throw std::runtime_error when there is no clang.

/// As ordinary C++ against the emulator's shim, with `device`, `constant` and `threadgroup` as clang address spaces.
std::string address_space_complaints(const fast::KernelSource& kernel);

/// As C++ for OpenCL 2021, in which every address space and that of `this` counts (msl/metal_stdlib): as MSL 4.1, where
/// what has no address space written is generic. MSL before 4.1 has none that is generic: what the kernel declares so,
/// a pointer, a reference or a member function, is a complaint too.
std::string msl_complaints(const fast::KernelSource& kernel, InputSpace inputs);

}  // namespace natten::metal_host
