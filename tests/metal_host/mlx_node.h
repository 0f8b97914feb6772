// An emulated kernel as a node of MLX's graph, for the library that is built with NATTEN_BUILD_EMULATOR.
#pragma once

#include <cstdio>
#include <stdexcept>
#include <utility>
#include <vector>

#include "emulator.h"
#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/primitives.h"

namespace natten::metal_host {

namespace mx = mlx::core;

class EmulatedKernel : public mx::Primitive {
 public:
  EmulatedKernel(mx::Stream stream, fast::KernelSource source) : Primitive(stream), source_(std::move(source)) {}

  const char* name() const override { return source_.name.c_str(); }
  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("emulated kernels run on the CPU");
  }
  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    std::vector<Input> in;
    for (const mx::array& a : inputs) {
      in.push_back({a.data<char>(), std::vector<std::int64_t>(a.strides().begin(), a.strides().end())});
    }
    std::vector<void*> out;
    for (mx::array& a : outputs) {
      a.set_data(mx::allocator::malloc(a.nbytes()));
      out.push_back(a.data<char>());
    }
    auto& encoder = mx::cpu::get_command_encoder(stream());
    encoder.dispatch([source = source_, in = std::move(in), out = std::move(out)] {
      try {
        run_emulated(source, in, out);
      } catch (const std::exception& error) {  // MLX's thread may keep it to itself
        std::fprintf(stderr, "%s, emulated: %s\n", source.name.c_str(), error.what());
        throw;
      }
    });
  }

 private:
  fast::KernelSource source_;
};

}  // namespace natten::metal_host
