#include "kernel_text.h"

#include <stdexcept>

namespace natten::metal_host {

namespace {

const char* const kMetalNames[] = {"bool", "int32_t", "int64_t", "uint32_t", "float16_t", "bfloat16_t", "float"};
const char* const kCudaNames[] = {"bool", "int32_t", "int64_t", "uint32_t", "__half", "__nv_bfloat16", "float"};
constexpr int64_t kSizes[] = {1, 4, 8, 4, 2, 2, 4};

/// Inputs with fewer elements than this are in the constant address space.
constexpr int64_t kConstantLimit = 8;

struct Attribute {
  const char* name;
  const char* type;
};

/// Thread attributes that MLX adds to the signature when their name occurs in the body. It knows five more, of
/// quad-groups and of the grid's origin, which a kernel here must not use.
constexpr Attribute kAttributes[] = {
    {"dispatch_simdgroups_per_threadgroup", "uint"},
    {"dispatch_threads_per_threadgroup", "uint3"},
    {"grid_size", "uint3"},
    {"simdgroup_index_in_threadgroup", "uint"},
    {"simdgroups_per_threadgroup", "uint"},
    {"thread_execution_width", "uint"},
    {"thread_index_in_simdgroup", "uint"},
    {"thread_index_in_threadgroup", "uint"},
    {"thread_position_in_grid", "uint3"},
    {"thread_position_in_threadgroup", "uint3"},
    {"threadgroup_position_in_grid", "uint3"},
    {"threadgroups_per_grid", "uint3"},
    {"threads_per_grid", "uint3"},
    {"threads_per_simdgroup", "uint"},
    {"threads_per_threadgroup", "uint3"},
};

std::string metal_name(Scalar type) {
  return kMetalNames[static_cast<int>(type)];
}
std::string cuda_name(Scalar type) {
  return kCudaNames[static_cast<int>(type)];
}

std::string joined(const std::vector<std::string>& parts, const std::string& separator) {
  std::string all;
  for (size_t i = 0; i < parts.size(); ++i) all += (i == 0 ? "" : separator) + parts[i];
  return all;
}

/// A template argument as it is written in `<...>`: booleans as 0 and 1.
std::string value_text(const TemplateArgument& value) {
  if (const auto* type = std::get_if<Scalar>(&value)) return metal_name(*type);
  if (const auto* number = std::get_if<int>(&value)) return std::to_string(*number);
  return std::get<bool>(value) ? "1" : "0";
}

void check(const std::vector<Parameter>& inputs, const std::vector<Parameter>& outputs) {
  if (outputs.empty()) throw std::invalid_argument("a kernel needs an output");
  for (const Parameter& input : inputs) {
    if (input.shape.empty()) throw std::invalid_argument(input.name + ": 0-d inputs are not supported");
  }
}

}  // namespace

int64_t size_of(Scalar type) {
  return kSizes[static_cast<int>(type)];
}

int64_t Parameter::size() const {
  int64_t size = 1;
  for (const int32_t length : shape) size *= length;
  return size;
}

bool asks_for(const Kernel& kernel, const Parameter& input, const char* suffix) {
  return kernel.source.find(input.name + suffix) != std::string::npos;
}

GeneratedText metal_text(const Kernel& kernel, const std::vector<Parameter>& inputs,
                         const std::vector<Parameter>& outputs) {
  check(inputs, outputs);
  GeneratedText result;
  std::vector<std::string> declarations, values, parameters;
  result.kernel_name = "custom_kernel_" + kernel.name;
  for (const auto& [name, value] : kernel.template_arguments) {
    const char* const kind[] = {"int ", "bool ", "typename "};
    declarations.push_back(kind[value.index()] + name);
    values.push_back(value_text(value));
    result.kernel_name += "_" + values.back();
  }
  for (const Parameter& input : inputs) {
    result.kernel_name += "_" + metal_name(input.type) + (input.size() < kConstantLimit ? "c" : "");
  }
  for (const Parameter& output : outputs) result.kernel_name += "_" + metal_name(output.type);

  const auto add = [&](const std::string& declaration) {
    parameters.push_back("  " + declaration + " [[buffer(" + std::to_string(parameters.size()) + ")]]");
  };
  for (const Parameter& input : inputs) {
    const std::string space = input.size() < kConstantLimit ? "constant " : "device ";
    add("const " + space + metal_name(input.type) + "* " + input.name);
    if (asks_for(kernel, input, "_shape")) add("const constant int* " + input.name + "_shape");
    if (asks_for(kernel, input, "_strides")) add("const constant int64_t* " + input.name + "_strides");
    if (asks_for(kernel, input, "_ndim")) add("const constant int& " + input.name + "_ndim");
  }
  for (const Parameter& output : outputs) add("device " + metal_name(output.type) + "* " + output.name);
  for (const auto& [name, type] : kAttributes) {
    if (kernel.source.find(name) == std::string::npos) continue;
    result.attributes.push_back(name);
    parameters.push_back(std::string("  ") + type + " " + name + " [[" + name + "]]");
  }

  result.text = kernel.header;
  if (!declarations.empty()) result.text += "template <" + joined(declarations, ", ") + ">\n";
  result.text +=
      "[[kernel]] void " + result.kernel_name + "(\n" + joined(parameters, ",\n") + ") {\n" + kernel.source + "\n}\n";
  if (!values.empty()) {
    const std::string instance = result.kernel_name + "<" + joined(values, ", ") + ">";
    result.text += "\ntemplate [[host_name(\"" + result.kernel_name + "\")]] [[kernel]] decltype(" + instance + ") " +
                   instance + ";\n";
  }
  return result;
}

GeneratedText cuda_text(const Kernel& kernel, const std::vector<Parameter>& inputs,
                        const std::vector<Parameter>& outputs) {
  check(inputs, outputs);
  GeneratedText result;
  std::vector<std::string> parameters;
  std::string constants;
  result.kernel_name = "custom_kernel_" + kernel.name;
  for (const auto& [name, value] : kernel.template_arguments) {
    if (const auto* type = std::get_if<Scalar>(&value)) {
      result.kernel_name += "_" + metal_name(*type);
      constants += "  using " + name + " = " + cuda_name(*type) + ";\n";
    } else if (const auto* number = std::get_if<int>(&value)) {
      result.kernel_name += "_" + std::to_string(*number);
      constants += "  constexpr int " + name + " = " + std::to_string(*number) + ";\n";
    } else {
      const bool flag = std::get<bool>(value);
      result.kernel_name += flag ? "_t" : "_f";
      constants += "  constexpr bool " + name + " = " + (flag ? "true" : "false") + ";\n";
    }
  }
  for (const Parameter& input : inputs) {
    parameters.push_back("    const " + cuda_name(input.type) + "* " + input.name);
    if (asks_for(kernel, input, "_shape")) {
      parameters.push_back("    const __grid_constant__ Shape " + input.name + "_shape");
    }
    if (asks_for(kernel, input, "_strides")) {
      parameters.push_back("    const __grid_constant__ Strides " + input.name + "_strides");
    }
    if (asks_for(kernel, input, "_ndim")) {
      parameters.push_back("    const __grid_constant__ int " + input.name + "_ndim");
    }
  }
  for (const Parameter& output : outputs) parameters.push_back("    " + cuda_name(output.type) + "* " + output.name);

  result.text = "\n#include \"mlx/backend/cuda/device/utils.cuh\"\n\n#include <cooperative_groups.h>\n\n" +
                kernel.header + "namespace mlx::core::cu {\n\nnamespace cg = cooperative_groups;\n\n__global__ void " +
                result.kernel_name + "(\n" + joined(parameters, ",\n") + ") {\n" + constants + "\n" + kernel.source +
                "\n}\n\n} // namespace mlx::core::cu\n";
  return result;
}

}  // namespace natten::metal_host
