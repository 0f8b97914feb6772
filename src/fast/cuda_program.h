// A kernel of CUDA as a whole program: what our own call of NVRTC compiles, and mx::fast::precompiled_cuda_kernel runs.
// The text is that of KernelText; only the signature is other than MLX's, which has no arrays by value here.
#pragma once

#include <cstdint>
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
};

/// Parameters of the function: inputs, outputs, then the integers of `cuda_scalars`.
CudaProgram cuda_program(const KernelSource& kernel);

/// Appends what a program takes of its next input: lengths of axes, and strides in two halves, the lower one first.
void append_scalars(std::vector<int>& scalars, const CudaProgram& program, std::size_t input,
                    std::span<const std::int32_t> shape, std::span<const std::int64_t> strides);

}  // namespace natten::fast
