#include "lint.h"

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string_view>

#include "compile.h"

namespace natten::metal_host {

namespace {

/// A target on which clang knows two 16-bit float types; nothing is generated for it.
const char* const kShimFlags =
    " -x c++ -std=c++17 -fsyntax-only --target=aarch64-linux-gnu -ffreestanding -nostdlibinc -w"
    " -DMETAL_HOST_ADDRESS_SPACES";

const char* const kModelFlags =
    " -x clcpp -cl-std=CLC++2021 -fsyntax-only --target=spir64-unknown-unknown -w -fno-color-diagnostics"
    " -Xclang -cl-ext=-all,+cl_khr_fp16,+cl_khr_fp64,+__opencl_c_fp64,+__opencl_c_generic_address_space"
    " -Xclang -ast-dump";

std::string clang() {
  static const std::string found = [] {
    const char* chosen = std::getenv("NATTEN_EMULATOR_CLANG");
    std::string name = chosen != nullptr && *chosen != 0 ? chosen : "clang++";
    bool ok = false;
    shell(name + " --version", ok);
    if (!ok) throw std::runtime_error("the checks of Metal's text need clang++ (or NATTEN_EMULATOR_CLANG)");
    return name;
  }();
  return found;
}

class TemporaryFile {
 public:
  TemporaryFile(const std::string& text, const char* suffix) {
    static std::atomic<int> count{0};
    const std::string name = "natten_" + std::to_string(getpid()) + "_" + std::to_string(count++) + suffix;
    path_ = std::filesystem::temp_directory_path() / name;
    std::ofstream(path_) << text;
  }
  ~TemporaryFile() { std::filesystem::remove(path_); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

/// The text with threadgroup arrays declared with `prefix`, and everything else as it is.
std::string with_shared_arrays(const std::string& text, const std::string& prefix) {
  return rewrite_shared_arrays(text, [&](const SharedArray& array) {
    const std::string alignment = array.alignment.empty() ? "" : "alignas(" + array.alignment + ") ";
    return alignment + prefix + "threadgroup " + array.type + " " + array.name + array.extent;
  });
}

bool names_space(std::string_view type) {
  for (const char* space : {"__private", "__global", "__local", "__constant"}) {
    if (type.find(space) != type.npos) return true;
  }
  return false;
}

/// Whether a type, as clang prints it, has a pointer, a reference or a member function without a named address space.
bool is_generic(std::string_view type) {
  if (type.find("__generic") != type.npos) return true;
  for (size_t at = type.find_first_of("*&"); at != type.npos; at = type.find_first_of("*&", at + 1)) {
    // What it points to is written before it, up to the start of the parameter, template argument or type.
    size_t end = at;
    while (end > 0 && (type[end - 1] == ' ' || type[end - 1] == '(' || type[end - 1] == '&')) --end;
    size_t begin = end;
    for (int depth = 0; begin > 0; --begin) {
      const char c = type[begin - 1];
      if (c == '>' || c == ')') ++depth;
      if ((c == '<' || c == '(') && --depth < 0) break;
      if (depth == 0 && (c == ',' || c == '*' || c == '&')) break;
    }
    if (!names_space(type.substr(begin, end - begin))) return true;
  }
  return false;
}

/// The declarations and casts with such a type in clang's dump of a syntax tree, but for what clang itself declares.
std::string generic_declarations(const std::string& dump) {
  static constexpr std::string_view kKinds[] = {
      "CStyleCastExpr", "CXXFunctionalCastExpr", "CXXMethodDecl", "CXXReinterpretCastExpr", "CXXStaticCastExpr",
      "FieldDecl",      "FunctionDecl",          "ParmVarDecl",   "TypeAliasDecl",          "TypedefDecl",
      "VarDecl"};
  std::string found;
  size_t skipped_depth = std::string::npos;  // of a declaration by clang, whose parts are indented more
  std::istringstream lines(dump);
  for (std::string line; std::getline(lines, line);) {
    const size_t depth = line.find_first_not_of("|`- ");
    if (depth == line.npos || depth > skipped_depth) continue;
    skipped_depth = line.npos;
    const std::string_view node = std::string_view(line).substr(depth);
    const size_t quote = node.find('\'');
    if (node.substr(0, quote).find(" implicit ") != node.npos) {
      skipped_depth = depth;
      continue;
    }
    bool counts = false;
    for (const std::string_view kind : kKinds)
      counts = counts || node.substr(0, kind.size() + 1) == std::string(kind) + " ";
    if (!counts || quote == node.npos) continue;
    std::string_view type = node.substr(quote + 1, node.find('\'', quote + 1) - quote - 1);
    if (node.substr(node.rfind(' ') + 1) == "static") type = type.substr(0, type.rfind(") ") + 1);  // has no `this`
    if (is_generic(type)) {
      found += "generic, which MSL before 4.1 refuses: " + std::string(node) + "\n";
    }
  }
  return found;
}

}  // namespace

std::string address_space_complaints(const fast::KernelSource& kernel) {
  bool ok = false;
  const TemporaryFile file(with_shared_arrays(metal_text(kernel).text, "static "), ".cpp");
  const std::string output =
      shell(clang() + kShimFlags + " -include " + shim_directory() + "/metal_stdlib.h " + file.path(), ok);
  return ok ? "" : output;
}

std::string msl_complaints(const fast::KernelSource& kernel, InputSpace inputs) {
  std::string text = with_shared_arrays(metal_text(kernel, inputs).text, "");
  const std::string attribute = "[[kernel]]";  // a word of OpenCL instead
  text.replace(text.find(attribute), attribute.size(), "kernel");
  bool ok = false;
  const std::string model = NATTEN_METAL_HOST_MSL;
  const TemporaryFile file(text, ".cl");
  const std::string output = shell(clang() + kModelFlags + " -I" + model + " -I" + NATTEN_METAL_HOST_MLX_HEADERS +
                                       " -include " + model + "/model.h " + file.path(),
                                   ok);
  if (ok) return generic_declarations(output);
  std::string errors;  // each with the line of the text that clang quotes
  std::istringstream lines(output);
  for (std::string line; std::getline(lines, line);) {
    if (line.find("error: ") == line.npos) continue;
    errors += line + "\n";
    if (std::getline(lines, line)) errors += line + "\n";
  }
  return errors;
}

}  // namespace natten::metal_host
