// Compiles generated kernels with the host's compiler and keeps the results in a cache directory.
#pragma once

#include <functional>
#include <string>

#include "kernel_text.h"
#include "shim/launch.h"

namespace natten::metal_host {

using LaunchFunction = void (*)(::metal_host::Launch*);

/// The compiled kernel: from this process, from the cache, or compiled now. Throws std::runtime_error with the
/// compiler's messages.
LaunchFunction compiled(const GeneratedText& kernel);

/// A declaration `alignas(alignment) threadgroup type name[extent]`; extent with its brackets, alignment perhaps empty.
struct SharedArray {
  std::string alignment, type, name, extent;
};

/// The one change that is made to a kernel's text. (As a macro, `threadgroup` could not tell an array, which all
/// threads of a group must share, from a pointer, which is each thread's own.)
std::string rewrite_shared_arrays(const std::string& text,
                                  const std::function<std::string(const SharedArray&)>& replacement);

/// Output of a shell command; `ok` tells whether it succeeded.
std::string shell(const std::string& command, bool& ok);

/// A file in the cache directory holding `text`, named after its hash.
std::string cached_file(const std::string& text, const std::string& suffix);

std::string shim_directory();

}  // namespace natten::metal_host
