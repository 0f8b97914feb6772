// A kernel of CUDA as a whole program: what our own call of NVRTC compiles, and mx::fast::precompiled_cuda_kernel runs.
// The text is that of KernelText; only the signature is other than MLX's, which has no arrays by value here.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "fast/kernel_source.h"

namespace natten::fast {

/// A program needs no headers and no options but the architecture.
struct CudaProgram {
  std::string name;  ///< of its one function
  std::string text;
  std::vector<bool> takes_shape, takes_strides;  ///< of each input
  std::optional<std::size_t> scale;              ///< the input that is a parameter in the place of an array
  bool is_wide = false;                          ///< strides are 64-bit numbers
};

/// Parameters of the function: inputs but the scale, outputs, then the integers of `append_scalars`, then the scale,
/// which MLX would leave in the host's memory, where every threadgroup would read it. Strides of 64 bits cost registers
/// and instructions, so there is a program of its own for arrays that have them.
CudaProgram cuda_program(const KernelSource& kernel, bool wide = false);

/// Whether strides of axes with more than one position need 64 bits.
bool needs_wide(std::span<const std::int32_t> shape, std::span<const std::int64_t> strides);

/// Appends what a program takes of its next input: lengths of axes, and strides, of a wide one in two halves, the lower
/// one first. Others take 0 for strides that do not fit.
void append_scalars(std::vector<int>& scalars, const CudaProgram& program, std::size_t input,
                    std::span<const std::int32_t> shape, std::span<const std::int64_t> strides);

}  // namespace natten::fast
