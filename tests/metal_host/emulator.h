// Runs kernels written for Apple's GPU on the CPU: exactly the text that MLX would compile is compiled by the host's
// C++ compiler against a stand-in for the Metal standard library (shim/), loaded, and run one fiber per GPU thread with
// every access to shared memory checked. docs/laboratory/emulator.md says what that shows and what it does not.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fast/kernel_source.h"

namespace natten::metal_host {

struct Input {
  const void* data = nullptr;         ///< element (0, 0, ...)
  std::vector<std::int64_t> strides;  ///< in elements, any sign; shape and type are the kernel's ArraySpec
};

struct Traffic {
  std::string name;
  std::int64_t loaded = 0;       ///< bytes of all loads of all threads
  std::int64_t loaded_once = 0;  ///< the same, a byte counting once for each threadgroup that loads it
  std::int64_t stored = 0;
};

struct Report {
  std::string error;                    ///< what the kernel did wrong first; empty when it did nothing wrong
  std::vector<Traffic> traffic;         ///< inputs, then outputs
  std::int64_t barriers = 0;            ///< threadgroup barriers, over all threadgroups
  std::int64_t threadgroup_loaded = 0;  ///< bytes that threads load from the threadgroup array declared first
  int threadgroup_bytes = 0;            ///< of statically declared threadgroup memory

  std::int64_t loaded() const;
  std::int64_t loaded_once() const;
  std::int64_t stored() const;
};

/// One launch. `outputs` are dense. `order` 0 runs threads and groups in ascending order, any other is the seed of a
/// shuffle. Throws std::runtime_error when the kernel does not compile; what it does wrong is in the report.
Report run(const fast::KernelSource& kernel, const std::vector<Input>& inputs, const std::vector<void*>& outputs,
           std::uint64_t order = 0);

/// The launch as a program makes it: twice, in ascending and in shuffled order. Throws std::runtime_error when the
/// kernel does anything wrong, when the two runs differ in a single bit, or when it uses other than the declared shared
/// memory.
Report run_emulated(const fast::KernelSource& kernel, const std::vector<Input>& inputs,
                    const std::vector<void*>& outputs);

}  // namespace natten::metal_host
