#include "fast/cuda_program.h"

#include "fast/embedded.h"

namespace natten::fast {

namespace {

/// Parameters that are integers, and the arrays that the text reads them from.
class Integers {
 public:
  Integers(std::string& parameters, bool wide) : parameters_(parameters), is_wide_(wide) {}

  void add_shape(const std::string& name, std::size_t rank) {
    add_array("int", name + "_shape", rank, [&] { return next(); });
  }
  void add_strides(const std::string& name, std::size_t rank) {
    if (!is_wide_) return add_array("int", name + "_strides", rank, [&] { return next(); });
    add_array("long long", name + "_strides", rank, [&] {
      const std::string low = next();
      return "(long long)(((unsigned long long)(unsigned)" + next() + " << 32) | (unsigned)" + low + ")";
    });
  }
  const std::string& arrays() const { return arrays_; }

 private:
  template <class Element>
  void add_array(const std::string& type, const std::string& name, std::size_t rank, const Element& element) {
    arrays_ += "const " + type + " " + name + "[] = {";
    for (std::size_t i = 0; i < rank; ++i) arrays_ += (i == 0 ? "" : ", ") + element();
    arrays_ += "};\n";
  }
  std::string next() {
    const std::string name = "na_integer_" + std::to_string(count_++);
    parameters_ += ", int " + name;
    return name;
  }

  std::string& parameters_;
  bool is_wide_;
  std::string arrays_;
  int count_ = 0;
};

bool fits(std::int64_t stride) {
  return stride == static_cast<std::int32_t>(stride);
}

}  // namespace

CudaProgram cuda_program(const KernelSource& kernel, bool wide) {
  CudaProgram program;
  program.name = kernel.name + (wide ? "_wide" : "");
  program.is_wide = wide;
  std::string parameters;
  for (const ArraySpec& input : kernel.inputs) {
    parameters += (parameters.empty() ? "const " : ", const ") + std::string(type_name(input.type, Platform::cuda)) +
                  "* " + input.name;
  }
  for (const ArraySpec& output : kernel.outputs) {
    parameters += std::string(", ") + type_name(output.type, Platform::cuda) + "* " + output.name;
  }
  const auto asks_for = [&](const std::string& name) { return kernel.source.find(name) != std::string::npos; };
  Integers integers(parameters, wide);
  for (const ArraySpec& input : kernel.inputs) {
    program.takes_shape.push_back(asks_for(input.name + "_shape"));
    program.takes_strides.push_back(asks_for(input.name + "_strides"));
    if (program.takes_shape.back()) integers.add_shape(input.name, input.shape.size());
    if (program.takes_strides.back()) integers.add_strides(input.name, input.shape.size());
  }
  program.text = text::types_cuda + kernel.header +
                 "extern \"C\" __global__ void __launch_bounds__(NA_THREADS, NA_GROUPS) " + program.name + "(" +
                 parameters + ") {\n" + integers.arrays() + kernel.source + "}\n";
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
