// Machine code of CUDA kernels: from the files of earlier processes, or compiled by NVRTC in threads of our own, so
// that a graph's kernels compile side by side while the graph is still being built.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "fast/cuda_program.h"

namespace natten::fast {

/// Why MLX compiles a target's kernels, anew in each process, and not this; nothing where this does. Environment:
/// NATTEN_NVRTC=0 leaves them to MLX.
std::optional<std::string> objection_to_compiler(Target target);
/// The same, and tells the logger, once, where this cannot.
bool is_compiled_here(Target target);
/// The default writes to standard error.
void set_compiler_logger(std::function<void(const std::string&)> logger);

class Cubin {
 public:
  virtual ~Cubin() = default;
  /// The machine code, for which this waits; if nobody has begun with it, it is made here.
  /// Throws std::runtime_error with the compiler's messages, each time.
  virtual const std::string& code() const = 0;
  /// Whether it was compiled, not found in a file. Of a kernel that is done.
  virtual bool is_compiled() const = 0;
};
using CubinPtr = std::shared_ptr<const Cubin>;

/// Begins to make the code of a program for GPUs of a compute capability that NVRTC knows.
CubinPtr request_cubin(const CudaProgram& program, int capability);

}  // namespace natten::fast
