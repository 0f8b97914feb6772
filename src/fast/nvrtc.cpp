#include "fast/nvrtc.h"

#include <dlfcn.h>
#ifdef __linux__
#include <link.h>
#endif

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string_view>

namespace natten::fast {

namespace {

namespace files = std::filesystem;

/// The folder into which Python's packages are installed, if MLX's library comes from there.
std::optional<files::path> packages() {
  std::string mlx;
#ifdef __linux__
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* found) {
        const std::string_view name = info->dlpi_name ? info->dlpi_name : "";
        if (name.ends_with("/libmlx.so")) *static_cast<std::string*>(found) = name;
        return 0;
      },
      &mlx);
#endif
  if (mlx.empty()) return std::nullopt;
  return files::path(mlx).parent_path().parent_path().parent_path();  // of PACKAGES/mlx/lib/libmlx.so
}

/// Of one of NVIDIA's packages. What the compiler loads itself is loaded first: no search path leads there.
void* open_in(const files::path& folder) {
  std::error_code error;
  std::vector<std::string> compilers;
  for (const auto& entry : files::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("libnvrtc-builtins.so")) dlopen(entry.path().c_str(), RTLD_LAZY | RTLD_GLOBAL);
    if (name.starts_with("libnvrtc.so.")) compilers.push_back(entry.path().string());
  }
  return compilers.empty() ? nullptr : dlopen(std::max_element(compilers.begin(), compilers.end())->c_str(), RTLD_LAZY);
}

constexpr const char* kNames[] = {"libnvrtc.so.13", "libnvrtc.so.12"};

/// MLX's own if it has loaded one, else one that lies beside it, else one that the system knows.
void* open_library() {
  for (const char* name : kNames) {
    if (void* library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD)) return library;
  }
  if (const auto folder = packages()) {
    for (const char* package : {"nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"}) {
      if (void* library = open_in(*folder / package)) return library;
    }
  }
  for (const char* name : kNames) {
    if (void* library = dlopen(name, RTLD_LAZY)) return library;
  }
  throw std::runtime_error("libnvrtc is not among the libraries of this process, NVIDIA's packages or the system");
}

template <class Function>
void get(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (!function) throw std::runtime_error(std::string("libnvrtc has no function ") + name);
}

}  // namespace

/// What the search came to, of which there is one. Never destroyed: threads may compile until the process ends.
struct Nvrtc::Found {
  std::unique_ptr<const Nvrtc> library;
  std::string failure;

  Found() {
    try {
      library.reset(new Nvrtc(open_library()));
    } catch (const std::runtime_error& error) {
      failure = error.what();
    }
  }
};

const Nvrtc::Found& Nvrtc::found() {
  static const auto& found = *new Found;
  return found;
}

const Nvrtc* Nvrtc::find() {
  return found().library.get();
}

const std::string& Nvrtc::failure() {
  return found().failure;
}

Nvrtc::Nvrtc(void* library) {
  get(library, "nvrtcVersion", call_.version);
  get(library, "nvrtcGetNumSupportedArchs", call_.archs_count);
  get(library, "nvrtcGetSupportedArchs", call_.archs);
  get(library, "nvrtcCreateProgram", call_.create);
  get(library, "nvrtcDestroyProgram", call_.destroy);
  get(library, "nvrtcCompileProgram", call_.compile);
  get(library, "nvrtcGetProgramLogSize", call_.log_size);
  get(library, "nvrtcGetProgramLog", call_.log);
  get(library, "nvrtcGetCUBINSize", call_.cubin_size);
  get(library, "nvrtcGetCUBIN", call_.cubin);
  get(library, "nvrtcGetErrorString", call_.message);
  int major = 0, minor = 0, count = 0;
  check(call_.version(&major, &minor), "nvrtcVersion");
  version_ = std::to_string(major) + '.' + std::to_string(minor);
  check(call_.archs_count(&count), "nvrtcGetNumSupportedArchs");
  capabilities_.resize(count);
  check(call_.archs(capabilities_.data()), "nvrtcGetSupportedArchs");
}

void Nvrtc::check(int status, const char* what) const {
  if (status != 0) throw std::runtime_error(std::string(what) + ": " + call_.message(status));
}

bool Nvrtc::knows(int capability) const {
  return std::find(capabilities_.begin(), capabilities_.end(), capability) != capabilities_.end();
}

std::string Nvrtc::architecture(int capability) {
  // Instructions of one architecture alone, such as Hopper's wgmma, need the letter; before it there was none.
  return "sm_" + std::to_string(capability) + (capability >= 90 ? "a" : "");
}

std::string Nvrtc::compile(const std::string& name, const std::string& text, int capability) const {
  void* program = nullptr;
  check(call_.create(&program, text.c_str(), (name + ".cu").c_str(), 0, nullptr, nullptr), "nvrtcCreateProgram");
  const auto destroy = [this](void* p) { call_.destroy(&p); };
  const std::unique_ptr<void, decltype(destroy)> owner(program, destroy);

  const std::string target = "--gpu-architecture=" + architecture(capability);
  const char* const options[] = {target.c_str(), "--device-as-default-execution-space", "--std=c++17"};
  const int status = call_.compile(program, static_cast<int>(std::size(options)), options);
  if (status != 0) {
    std::size_t size = 0;
    call_.log_size(program, &size);
    std::string log(size, '\0');
    call_.log(program, log.data());
    throw std::runtime_error("NVRTC " + version_ + " does not compile kernel " + name + " (" + call_.message(status) +
                             "): " + log.c_str());
  }
  std::size_t size = 0;
  check(call_.cubin_size(program, &size), "nvrtcGetCUBINSize");
  std::string cubin(size, '\0');
  check(call_.cubin(program, cubin.data()), "nvrtcGetCUBIN");
  return cubin;
}

}  // namespace natten::fast
