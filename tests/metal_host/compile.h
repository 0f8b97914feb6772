// Compiles generated kernels with the host's compiler and keeps the results in a cache directory.
#pragma once

#include <string>

#include "kernel_text.h"
#include "shim/launch.h"

namespace natten::metal_host {

using LaunchFunction = void (*)(::metal_host::Launch*);

/// The compiled kernel: from this process, from the cache, or compiled now. Throws std::runtime_error with the
/// compiler's messages. `call` is C++ that runs one thread of the kernel, appended to the text.
LaunchFunction compiled(const GeneratedText& kernel, const std::string& call);

/// Output of a shell command; `ok` tells whether it succeeded.
std::string shell(const std::string& command, bool& ok);

/// A file in the cache directory holding `text`, named after its hash.
std::string cached_file(const std::string& text, const std::string& suffix);

std::string shim_directory();

}  // namespace natten::metal_host
