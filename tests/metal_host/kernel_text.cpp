#include "kernel_text.h"

#include <stdexcept>

namespace natten::metal_host {

namespace {

using fast::ArraySpec;
using fast::ElementType;
using fast::KernelSource;

struct TypeNames {
  const char* metal;
  const char* cuda;
  std::int64_t size;
};

const TypeNames& names(ElementType type) {
  static constexpr TypeNames kNames[] = {
      // in the order of ElementType
      {"float16_t", "__half", 2},
      {"bfloat16_t", "__nv_bfloat16", 2},
      {"float", "float", 4},
      {"int32_t", "int32_t", 4},
  };
  return kNames[static_cast<int>(type)];
}

/// Inputs with fewer elements than this are in the constant address space.
constexpr std::int64_t kConstantLimit = 8;

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

std::string joined(const std::vector<std::string>& parts) {
  std::string all;
  for (size_t i = 0; i < parts.size(); ++i) all += (i == 0 ? "" : ",\n") + parts[i];
  return all;
}

/// The emulator's buffer number `index` as a pointer.
std::string argument(const std::string& type, size_t index) {
  return "static_cast<" + type + "*>(metal_host_argument(" + std::to_string(index) + "))";
}

std::string call_of(const std::string& kernel, const std::vector<std::string>& arguments) {
  return "\nMETAL_HOST_PLAIN void metal_host_run_thread() {\n" + kernel + "(\n" + joined(arguments) + ");\n}\n";
}

void check(const KernelSource& kernel) {
  if (kernel.outputs.empty()) throw std::invalid_argument("a kernel needs an output");
  for (const ArraySpec& input : kernel.inputs) {
    if (input.shape.empty()) throw std::invalid_argument(input.name + ": 0-d inputs are not supported");
  }
}

}  // namespace

std::int64_t size_of(ElementType type) {
  return names(type).size;
}

std::int64_t element_count(const ArraySpec& array) {
  std::int64_t count = 1;
  for (const std::int64_t length : array.shape) count *= length;
  return count;
}

bool asks_for(const KernelSource& kernel, const ArraySpec& input, const char* suffix) {
  return kernel.source.find(input.name + suffix) != std::string::npos;
}

GeneratedText metal_text(const KernelSource& kernel, InputSpace inputs) {
  check(kernel);
  GeneratedText result;
  std::vector<std::string> parameters, arguments;
  const auto add = [&](const std::string& qualifiers, const std::string& type, char kind, const std::string& name) {
    const std::string index = std::to_string(parameters.size());
    parameters.push_back("  " + qualifiers + " " + type + kind + " " + name + " [[buffer(" + index + ")]]");
    arguments.push_back(std::string(kind == '&' ? "*" : "") + argument(type, arguments.size()));
  };
  result.kernel_name = "custom_kernel_" + kernel.name;
  for (const ArraySpec& input : kernel.inputs) {
    const bool is_constant =
        inputs == InputSpace::by_size ? element_count(input) < kConstantLimit : inputs == InputSpace::constant;
    result.kernel_name += std::string("_") + names(input.type).metal + (is_constant ? "c" : "");
    add(is_constant ? "const constant" : "const device", names(input.type).metal, '*', input.name);
    if (asks_for(kernel, input, "_shape")) add("const constant", "int", '*', input.name + "_shape");
    if (asks_for(kernel, input, "_strides")) add("const constant", "int64_t", '*', input.name + "_strides");
    if (asks_for(kernel, input, "_ndim")) add("const constant", "int", '&', input.name + "_ndim");
  }
  for (const ArraySpec& output : kernel.outputs) {
    result.kernel_name += std::string("_") + names(output.type).metal;
    add("device", names(output.type).metal, '*', output.name);
  }
  for (const auto& [name, type] : kAttributes) {
    if (kernel.source.find(name) == std::string::npos) continue;
    parameters.push_back(std::string("  ") + type + " " + name + " [[" + name + "]]");
    arguments.push_back(std::string("metal_host::vector(metal_host_thread(), &metal_host_thread_attributes::") + name +
                        ")");
  }
  result.text = kernel.header + "[[kernel]] void " + result.kernel_name + "(\n" + joined(parameters) + ") {\n" +
                kernel.source + "\n}\n";
  result.call = call_of(result.kernel_name, arguments);
  result.library = "metal_stdlib.h";
  return result;
}

GeneratedText cuda_text(const KernelSource& kernel) {
  check(kernel);
  GeneratedText result;
  result.kernel_name = "custom_kernel_" + kernel.name;
  std::vector<std::string> parameters;
  for (const ArraySpec& input : kernel.inputs) {
    parameters.push_back(std::string("    const ") + names(input.type).cuda + "* " + input.name);
    const std::string constant = "    const __grid_constant__ ";
    if (asks_for(kernel, input, "_shape")) parameters.push_back(constant + "Shape " + input.name + "_shape");
    if (asks_for(kernel, input, "_strides")) parameters.push_back(constant + "Strides " + input.name + "_strides");
    if (asks_for(kernel, input, "_ndim")) parameters.push_back(constant + "int " + input.name + "_ndim");
  }
  for (const ArraySpec& output : kernel.outputs) {
    parameters.push_back(std::string("    ") + names(output.type).cuda + "* " + output.name);
  }
  result.text = "\n#include \"mlx/backend/cuda/device/utils.cuh\"\n\n#include <cooperative_groups.h>\n\n" +
                kernel.header + "namespace mlx::core::cu {\n\nnamespace cg = cooperative_groups;\n\n__global__ void " +
                result.kernel_name + "(\n" + joined(parameters) + ") {\n" + kernel.source +
                "\n}\n\n} // namespace mlx::core::cu\n";
  return result;
}

GeneratedText host_text(const KernelSource& kernel) {
  if (kernel.platform == fast::Platform::metal) return metal_text(kernel);
  check(kernel);
  GeneratedText result;
  result.kernel_name = "custom_kernel_" + kernel.name;
  std::vector<std::string> parameters, arguments;
  const auto add = [&](const std::string& type, const std::string& name, bool is_value = false) {
    parameters.push_back((is_value ? type : type + "*") + " " + name);
    arguments.push_back((is_value ? "*" : "") + argument(type, arguments.size()));
  };
  for (const ArraySpec& input : kernel.inputs) {
    add(std::string("const ") + names(input.type).cuda, input.name);
    if (asks_for(kernel, input, "_shape")) add("const int32_t", input.name + "_shape");
    if (asks_for(kernel, input, "_strides")) add("const int64_t", input.name + "_strides");
    if (asks_for(kernel, input, "_ndim")) add("const int", input.name + "_ndim", true);
  }
  for (const ArraySpec& output : kernel.outputs) add(names(output.type).cuda, output.name);
  result.text = kernel.header + "__global__ void " + result.kernel_name + "(\n" + joined(parameters) + ") {\n" +
                kernel.source + "\n}\n";
  // Dynamic shared memory as an array of its size.
  const std::string dynamic = "extern __shared__ unsigned char na_memory[";
  if (const size_t at = result.text.find(dynamic); at != std::string::npos) {
    result.text.replace(at, dynamic.size(), "__shared__ uint8_t na_memory[" + std::to_string(kernel.dynamic_bytes));
  }
  result.call = call_of(result.kernel_name, arguments);
  result.library = "cuda.h";
  return result;
}

}  // namespace natten::metal_host
