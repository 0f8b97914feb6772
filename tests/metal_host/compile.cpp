#include "compile.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <unordered_map>

namespace natten::metal_host {

namespace fs = std::filesystem;

namespace {

// -fsanitize=thread is there for the calls it puts before every memory access (shim/runtime.cpp), at the link step it
// must not appear. No contraction of a * b + c: results don't depend on the host's instruction set.
const char* const kKernelFlags =
    " -std=c++17 -O1 -fPIC -fvisibility=hidden -fno-exceptions -fno-rtti -fno-strict-aliasing -ffp-contract=off"
    " -fsanitize=thread -fsanitize=bounds -fno-sanitize-recover=bounds -w";
const char* const kRuntimeFlags = " -std=c++17 -O2 -fPIC -fvisibility=hidden -fno-exceptions -fno-rtti";

std::string environment_or(const char* name, const std::string& otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != 0 ? value : otherwise;
}

std::string compiler() {
  return environment_or("NATTEN_EMULATOR_CXX", NATTEN_METAL_HOST_CXX);
}

fs::path cache_directory() {
  static const fs::path directory = [] {
    const std::string home = environment_or("XDG_CACHE_HOME", environment_or("HOME", "/tmp") + "/.cache");
    fs::path path = environment_or("NATTEN_EMULATOR_CACHE", home + "/natten-mlx/metal_host");
    fs::create_directories(path);
    return path;
  }();
  return directory;
}

/// FNV-1a. Two of them name a file.
uint64_t hash(const std::string& text, uint64_t seed) {
  uint64_t value = 0xcbf29ce484222325ull ^ seed;
  for (const unsigned char c : text) value = (value ^ c) * 0x100000001b3ull;
  return value;
}

std::string hash_name(const std::string& text) {
  char name[40];
  std::snprintf(name, sizeof(name), "%016llx%016llx", static_cast<unsigned long long>(hash(text, 0)),
                static_cast<unsigned long long>(hash(text, 0x9e3779b97f4a7c15ull)));
  return name;
}

std::string contents(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

/// Everything but the kernel that a compiled kernel depends on.
const std::string& toolchain() {
  static const std::string all = [] {
    bool ok = false;
    std::string text = shell(compiler() + " --version", ok) + kKernelFlags + kRuntimeFlags;
    for (const char* name : {"launch.h", "runtime.h", "fiber.h", "memory.h", "runtime.cpp", "scalars.h", "vectors.h",
                             "metal_stdlib.h", "cuda.h", "cuda_warpgroup.h", "simdgroup_matrix.h"}) {
      text += contents(fs::path(shim_directory()) / name);
    }
    return text;
  }();
  return all;
}

/// Lets `command` write a file that appears under its final name only when complete: other processes share the cache.
/// `command` names its output %OUT%.
void build(const fs::path& target, std::string command) {
  const fs::path partial = target.string() + "." + std::to_string(getpid()) + ".tmp";
  for (size_t at = 0; (at = command.find("%OUT%")) != std::string::npos;) command.replace(at, 5, partial.string());
  bool ok = false;
  const std::string messages = shell(command, ok);
  if (!ok) throw std::runtime_error("the host's compiler rejects the kernel:\n" + command + "\n" + messages);
  fs::rename(partial, target);
}

fs::path runtime_object() {
  const fs::path object = cache_directory() / ("runtime-" + hash_name(toolchain()) + ".o");
  if (!fs::exists(object)) {
    build(object, compiler() + kRuntimeFlags + " -c " + shim_directory() + "/runtime.cpp -o %OUT%");
  }
  return object;
}

LaunchFunction load(const fs::path& library) {
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) throw std::runtime_error(std::string("cannot load an emulated kernel: ") + dlerror());
  return reinterpret_cast<LaunchFunction>(dlsym(handle, "metal_host_launch"));
}

}  // namespace

std::string shim_directory() {
  return NATTEN_METAL_HOST_SHIM;
}

std::string shell(const std::string& command, bool& ok) {
  std::string output;
  FILE* pipe = popen(("{ " + command + "; } 2>&1").c_str(), "r");
  if (pipe == nullptr) throw std::runtime_error("cannot run: " + command);
  char buffer[4096];
  for (size_t n = 0; (n = fread(buffer, 1, sizeof(buffer), pipe)) != 0;) output.append(buffer, n);
  ok = pclose(pipe) == 0;
  return output;
}

std::string cached_file(const std::string& text, const std::string& suffix) {
  const fs::path path = cache_directory() / (hash_name(text) + suffix);
  if (!fs::exists(path)) {
    const fs::path partial = path.string() + "." + std::to_string(getpid()) + ".tmp";
    std::ofstream(partial, std::ios::binary) << text;
    fs::rename(partial, path);
  }
  return path.string();
}

std::string rewrite_shared_arrays(const std::string& text,
                                  const std::function<std::string(const SharedArray&)>& replacement) {
  static const std::regex declaration(
      R"((?:alignas\(([^()]*)\)\s*)?\b(?:threadgroup|__shared__)\s+([A-Za-z_][\w:]*(?:\s*<[^;{}()]*>)?)\s+([A-Za-z_]\w*)\s*((?:\[[^\]]*\])+))");
  std::string result;
  auto from = text.cbegin();
  for (std::sregex_iterator match(text.cbegin(), text.cend(), declaration), end; match != end; ++match) {
    result.append(from, (*match)[0].first);
    result += replacement({(*match)[1].str(), (*match)[2].str(), (*match)[3].str(), (*match)[4].str()});
    from = (*match)[0].second;
  }
  return result.append(from, text.cend());
}

LaunchFunction compiled(const GeneratedText& kernel) {
  static std::mutex mutex;
  static std::unordered_map<std::string, LaunchFunction> loaded;
  const std::lock_guard lock(mutex);
  const std::string source = rewrite_shared_arrays(kernel.text,
                                                   [](const SharedArray& array) {
                                                     const std::string alignment =
                                                         array.alignment.empty() ? "" : ", (" + array.alignment + ")";
                                                     return "auto& " + array.name + " = metal_host::shared<" +
                                                            array.type + array.extent + alignment + ">(__COUNTER__)";
                                                   }) +
                             kernel.call;
  auto& function = loaded[source];
  if (function != nullptr) return function;
  const fs::path library = cache_directory() / (hash_name(toolchain() + source) + ".so");
  if (!fs::exists(library)) {
    const std::string file = cached_file(source, ".cpp");
    const std::string object = library.string() + "." + std::to_string(getpid()) + ".o";
    build(library, compiler() + kKernelFlags + " -include " + shim_directory() + "/" + kernel.library + " -c " + file +
                       " -o " + object + " && " + compiler() + " -shared " + object + " " + runtime_object().string() +
                       " -lm -o %OUT% && rm " + object);
  }
  return function = load(library);
}

}  // namespace natten::metal_host
