// NVIDIA's run-time compiler, loaded when first needed: the library that MLX's CUDA wheel brings. Nothing links to it.
#pragma once

#include <string>
#include <vector>

namespace natten::fast {

class Nvrtc {
 public:
  /// The library, which stays loaded. nullptr where there is none: `failure` says where it was looked for.
  static const Nvrtc* find();
  static const std::string& failure();

  /// Such as "12.9".
  const std::string& version() const { return version_; }
  /// Whether it compiles for GPUs of a compute capability, 10 * major + minor.
  bool knows(int capability) const;
  /// What it calls them: "sm_90a".
  static std::string architecture(int capability);
  /// Machine code for GPUs of that capability. Callable from several threads at a time.
  /// Throws std::runtime_error with the compiler's messages.
  std::string compile(const std::string& name, const std::string& text, int capability) const;

 private:
  struct Found;
  struct Functions {
    int (*version)(int*, int*);
    int (*archs_count)(int*);
    int (*archs)(int*);
    int (*create)(void**, const char*, const char*, int, const char* const*, const char* const*);
    int (*destroy)(void**);
    int (*compile)(void*, int, const char* const*);
    int (*log_size)(void*, std::size_t*);
    int (*log)(void*, char*);
    int (*cubin_size)(void*, std::size_t*);
    int (*cubin)(void*, char*);
    const char* (*message)(int);
  };

  explicit Nvrtc(void* library);
  static const Found& found();
  void check(int status, const char* what) const;

  Functions call_;
  std::string version_;
  std::vector<int> capabilities_;
};

}  // namespace natten::fast
