// Runs kernels written for Apple's GPU on the CPU: exactly the text that MLX would compile is compiled by the host's
// C++ compiler against a stand-in for the Metal standard library (shim/), loaded, and run one fiber per GPU thread with
// every access to shared memory checked. docs/emulator.md says what that shows and what it does not.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "kernel_text.h"

namespace natten::metal_host {

using Size3 = std::array<uint32_t, 3>;

struct Input {
  Parameter parameter;
  const void* data = nullptr;
  int64_t bytes = 0;  ///< of the whole allocation that the strides span
};

struct Output {
  Parameter parameter;  ///< dense, row-major
  void* data = nullptr;
};

struct Traffic {
  std::string name;
  int64_t loaded = 0;       ///< bytes of all loads of all threads
  int64_t loaded_once = 0;  ///< the same, a byte counting once for each threadgroup that loads it
  int64_t stored = 0;
};

struct Report {
  std::string error;             ///< what the kernel did wrong first; empty when it did nothing wrong
  std::vector<Traffic> traffic;  ///< inputs, then outputs
  int64_t barriers = 0;          ///< threadgroup barriers, over all threadgroups
  int threadgroup_bytes = 0;     ///< of statically declared threadgroup memory

  int64_t loaded() const;
  int64_t loaded_once() const;
  int64_t stored() const;
};

struct Run {
  Size3 grid{1, 1, 1};         ///< threads
  Size3 threadgroup{1, 1, 1};  ///< threads of a group
  uint64_t order = 0;          ///< 0: threads and groups in ascending order; otherwise the seed of a shuffle
};

/// One launch. Throws std::runtime_error when the kernel does not compile; what it does wrong is in the report.
Report run(const Kernel& kernel, const std::vector<Input>& inputs, const std::vector<Output>& outputs, const Run& run);

/// The launch as a program makes it: twice, in ascending and in shuffled order. Throws std::runtime_error when the
/// kernel does anything wrong or when the two runs differ in a single bit.
Report run_checked(const Kernel& kernel, const std::vector<Input>& inputs, const std::vector<Output>& outputs,
                   const Run& run);

/// Compiles the text with Metal's address spaces as clang address spaces, for syntax and types only. Returns clang's
/// complaints, empty when it has none. Throws std::runtime_error when there is no clang.
std::string address_space_complaints(const Kernel& kernel, const std::vector<Parameter>& inputs,
                                     const std::vector<Parameter>& outputs);

}  // namespace natten::metal_host
