// The text that MLX hands to the GPU's compiler for a kernel of mx::fast::metal_kernel and mx::fast::cuda_kernel. MLX
// cannot print it on a machine without that GPU, so its documented rules are followed here (MLX 0.32): see
// kernel_text.cpp.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace natten::metal_host {

enum class Scalar { boolean, int32, int64, uint32, float16, bfloat16, float32 };

int64_t size_of(Scalar type);

/// As mx::fast::TemplateArg.
using TemplateArgument = std::variant<int, bool, Scalar>;

/// The arguments of mx::fast::metal_kernel and of calling what it returns, without the arrays.
struct Kernel {
  std::string name;
  std::string header;
  std::string source;  ///< the body
  std::vector<std::pair<std::string, TemplateArgument>> template_arguments;
};

/// An input's or output's name and what the signature depends on. Strides count elements.
struct Parameter {
  std::string name;
  Scalar type = Scalar::float32;
  std::vector<int32_t> shape;
  std::vector<int64_t> strides;

  int64_t size() const;
};

struct GeneratedText {
  std::string kernel_name;
  std::string text;
  std::vector<std::string> attributes;  ///< Metal: the thread attributes that the signature asks for
};

GeneratedText metal_text(const Kernel& kernel, const std::vector<Parameter>& inputs,
                         const std::vector<Parameter>& outputs);
GeneratedText cuda_text(const Kernel& kernel, const std::vector<Parameter>& inputs,
                        const std::vector<Parameter>& outputs);

/// MLX passes `<input>_shape`, `<input>_strides` and `<input>_ndim` when the body contains that name anywhere.
bool asks_for(const Kernel& kernel, const Parameter& input, const char* suffix);

}  // namespace natten::metal_host
