// Writes the CUDA source of every kernel of the case table into the given folder: "NAME.cu" as this library compiles
// it, "NAME_mlx.cu" as MLX would hand it to NVRTC. Those of Hopper's warpgroup instructions, which no other GPU has,
// have "_sm_90a" in their names.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "cases.h"
#include "fast/cuda_program.h"
#include "fast/plan.h"
#include "kernel_text.h"

int main(int argc, char** argv) {
  using namespace natten;
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
    return 2;
  }
  const std::filesystem::path folder = argv[1];
  std::filesystem::create_directories(folder);
  const auto write = [&](const std::string& name, const fast::KernelSource& source) {
    std::ofstream(folder / (name + ".cu")) << fast::cuda_program(source).text;
    std::ofstream(folder / (name + "_mlx.cu")) << metal_host::cuda_text(source).text;
  };
  const fast::Target hopper{fast::Platform::cuda, 90};
  const auto write_warpgroups = [&](const std::string& name, const metal_host::KernelOf& kernel) {
    setenv("NATTEN_FAST_TILE", "warpgroup=1", 1);  // also where another engine is faster
    if (fast::plan(kernel.problem, kernel.id, hopper).engine == fast::Engine::warpgroup) {
      write(name + "_sm_90a", fast::kernel_source(kernel.problem, kernel.id, hopper));
    }
    unsetenv("NATTEN_FAST_TILE");
  };
  for (const metal_host::Case& test : metal_host::warpgroup_cases()) {
    for (const metal_host::KernelOf& kernel : metal_host::kernels_of(test.problem)) {
      write_warpgroups(test.name + "_" + fast::kernel_name(kernel.id), kernel);
    }
  }
  for (const metal_host::Case& test : metal_host::cases()) {
    for (const metal_host::KernelOf& kernel : metal_host::kernels_of(test.problem)) {
      const std::string name = test.name + "_" + fast::kernel_name(kernel.id);
      for (const bool tf32 : {false, true}) {
        const fast::Target target{fast::Platform::cuda, fast::Target::kOldestCapability, tf32};
        const auto source = fast::kernel_source(kernel.problem, kernel.id, target);
        const bool is_other =
            tf32 && source.name != fast::kernel_source(kernel.problem, kernel.id, target.platform).name;
        if (!tf32 || is_other) write(name + (tf32 ? "_tf32" : ""), source);
      }
      write_warpgroups(name, kernel);
    }
  }
}
