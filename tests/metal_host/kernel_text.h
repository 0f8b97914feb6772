// The text that MLX hands to the GPU's compiler for a kernel of mx::fast::metal_kernel and mx::fast::cuda_kernel. MLX
// cannot print it on a machine without that GPU, so its rules (MLX 0.32) are followed here.
#pragma once

#include <string>
#include <vector>

#include "fast/kernel_source.h"

namespace natten::metal_host {

struct GeneratedText {
  std::string kernel_name;
  std::string text;
  std::string call;     ///< C++ that runs one thread of the kernel on the emulator
  std::string library;  ///< of the emulator, which comes before the text
};

/// Address space of the inputs: MLX chooses by their size.
enum class InputSpace { by_size, constant, device };

GeneratedText metal_text(const fast::KernelSource& kernel, InputSpace inputs = InputSpace::by_size);
GeneratedText cuda_text(const fast::KernelSource& kernel);

/// What the emulator compiles: Metal's text as it is; CUDA's with Metal's kind of signature.
GeneratedText host_text(const fast::KernelSource& kernel);

/// MLX passes `<input>_shape`, `<input>_strides` and `<input>_ndim` when the body contains that name anywhere.
bool asks_for(const fast::KernelSource& kernel, const fast::ArraySpec& input, const char* suffix);

std::int64_t size_of(fast::ElementType type);
std::int64_t element_count(const fast::ArraySpec& array);

}  // namespace natten::metal_host
