#include <cstdlib>
#include <stdexcept>

#include "compile.h"
#include "emulator.h"

namespace natten::metal_host {

namespace {

/// A target on which clang knows two 16-bit float types; nothing is generated for it.
const char* const kFlags =
    " -x c++ -std=c++17 -fsyntax-only --target=aarch64-linux-gnu -ffreestanding -nostdlibinc -w"
    " -DMETAL_HOST_ADDRESS_SPACES";

std::string clang() {
  const char* chosen = std::getenv("NATTEN_EMULATOR_CLANG");
  return chosen != nullptr && *chosen != 0 ? chosen : "clang++";
}

}  // namespace

std::string address_space_complaints(const fast::KernelSource& kernel) {
  bool ok = false;
  shell(clang() + " --version", ok);
  if (!ok) throw std::runtime_error("the address space check needs clang++ (or NATTEN_EMULATOR_CLANG)");
  const std::string text = rewrite_shared_arrays(metal_text(kernel).text, [](const SharedArray& array) {
    const std::string alignment = array.alignment.empty() ? "" : "alignas(" + array.alignment + ") ";
    return alignment + "static threadgroup " + array.type + " " + array.name + array.extent;
  });
  const std::string output =
      shell(clang() + kFlags + " -include " + shim_directory() + "/metal_stdlib.h " + cached_file(text, ".metal"), ok);
  return ok ? "" : output;
}

}  // namespace natten::metal_host
