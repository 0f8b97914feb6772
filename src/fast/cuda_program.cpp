#include "fast/cuda_program.h"

#include "fast/embedded.h"

namespace natten::fast {

namespace {

bool fits(std::int64_t stride) {
  return stride == static_cast<std::int32_t>(stride);
}

}  // namespace

CudaProgram cuda_program(const KernelSource& kernel, bool wide) {
  CudaProgram program;
  program.name = kernel.name + (wide ? "_wide" : "");
  program.is_wide = wide;
  std::string parameters;
  for (std::size_t i = 0; i < kernel.inputs.size(); ++i) {
    const ArraySpec& input = kernel.inputs[i];
    if (input.name == kScaleName) {
      program.scale = i;
      continue;
    }
    parameters += (parameters.empty() ? "const " : ", const ") + std::string(type_name(input.type, Platform::cuda)) +
                  "* " + input.name;
  }
  for (const ArraySpec& output : kernel.outputs) {
    parameters += std::string(", ") + type_name(output.type, Platform::cuda) + "* " + output.name;
  }
  // Integers are parameters, from which arrays are made where the text asks for them.
  std::string arrays;
  int count = 0;
  const auto next = [&] {
    const std::string name = "na_integer_" + std::to_string(count++);
    parameters += ", int " + name;
    return name;
  };
  const auto add_array = [&](const std::string& name, std::size_t rank, bool in_halves) {
    if (kernel.source.find(name) == std::string::npos) return false;
    arrays += std::string("const ") + (in_halves ? "long long " : "int ") + name + "[] = {";
    for (std::size_t i = 0; i < rank; ++i) {
      const std::string low = next();
      arrays += i == 0 ? "" : ", ";
      arrays +=
          in_halves ? "(long long)(((unsigned long long)(unsigned)" + next() + " << 32) | (unsigned)" + low + ")" : low;
    }
    arrays += "};\n";
    return true;
  };
  for (const ArraySpec& input : kernel.inputs) {
    program.takes_shape.push_back(add_array(input.name + "_shape", input.shape.size(), false));
    program.takes_strides.push_back(add_array(input.name + "_strides", input.shape.size(), wide));
  }
  if (program.scale) {
    parameters += ", float na_float";
    arrays += std::string("const float ") + kScaleName + "[] = {na_float};\n";
  }
  program.text = text::types_cuda + kernel.header +
                 "extern \"C\" __global__ void __launch_bounds__(NA_THREADS, NA_GROUPS) " + program.name + "(" +
                 parameters + ") {\n" + arrays + kernel.source + "}\n";
  return program;
}

bool needs_wide(std::span<const std::int32_t> shape, std::span<const std::int64_t> strides) {
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] > 1 && !fits(strides[i])) return true;
  }
  return false;
}

void append_scalars(std::vector<int>& scalars, const CudaProgram& program, std::size_t input,
                    std::span<const std::int32_t> shape, std::span<const std::int64_t> strides) {
  if (program.takes_shape[input]) scalars.insert(scalars.end(), shape.begin(), shape.end());
  if (!program.takes_strides[input]) return;
  for (const std::int64_t stride : strides) {
    if (!program.is_wide) {
      scalars.push_back(fits(stride) ? static_cast<int>(stride) : 0);
      continue;
    }
    const auto bits = static_cast<std::uint64_t>(stride);
    scalars.push_back(static_cast<int>(static_cast<std::uint32_t>(bits)));
    scalars.push_back(static_cast<int>(static_cast<std::uint32_t>(bits >> 32)));
  }
}

}  // namespace natten::fast
