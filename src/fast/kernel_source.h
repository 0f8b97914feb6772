// What the run-time compilers get: the text of one kernel and everything needed to launch it. Free of MLX, so that the
// same text goes to mx::fast::metal_kernel, to mx::fast::cuda_kernel, to the host emulator and to NVRTC.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "definition/problem.h"

namespace natten::fast {

enum class Platform : std::uint8_t { metal, cuda };

/// What a kernel is made for.
struct Target {
  static constexpr int kOldestCapability = 80;  ///< Ampere: asynchronous copies, matrix units for bfloat16

  Platform platform;
  int capability;  ///< of an NVIDIA GPU, 10 * major + minor
  bool tf32;       ///< NVIDIA: products of float32 round to 10 bits of mantissa, for matrix units

  Target(Platform p, int c = kOldestCapability, bool rounds = false)
      : platform(p), capability(p == Platform::cuda ? c : 0), tf32(p == Platform::cuda && rounds) {}
  bool operator==(const Target&) const = default;
};

/// kernels.cpp has the arrays of each, which are those of problem.h; `delta` is rowsum(out * dout) - dlse.
// clang-format off
enum class KernelId : std::uint8_t {
  forward, delta, backward_query, backward_key_value, qk, qk_backward_query, qk_backward_key, av, av_backward_attn,
  av_backward_value, rpb_sum
};
// clang-format on

enum class ElementType : std::uint8_t { float16, bfloat16, float32, int32 };
const char* type_name(ElementType type, Platform platform);
inline int element_size(ElementType type) {
  return type <= ElementType::bfloat16 ? 2 : 4;
}

struct ArraySpec {
  std::string name;  ///< as it stands in the source, without `_shape` or `_strides`
  ElementType type = ElementType::float32;
  std::vector<std::int64_t> shape;
};

/// Text of the kernels of a whole family of problems (plan.h): neither batch, number of heads, scale nor, where they
/// choose the same tiles, lengths are in it. There are no template arguments: the constants of an instance are macros
/// at the top of `header`, and `name` is unique for header, source, input types and architecture.
struct KernelText {
  std::string name;
  Platform platform = Platform::metal;
  std::string header;  ///< constants, prelude, window.h, bodies: namespace-scope code
  std::string source;  ///< the kernel function's body
};

/// What differs from launch to launch.
struct KernelLaunch {
  std::vector<ArraySpec> inputs;
  std::vector<ArraySpec> outputs;
  std::array<int, 3> grid{1, 1, 1};         ///< threads, a multiple of `threadgroup`
  std::array<int, 3> threadgroup{1, 1, 1};  ///< threads; x is a multiple of 32
  int shared_bytes = 0;                     ///< static threadgroup memory
  int dynamic_bytes = 0;                    ///< CUDA: of dynamic shared memory, `na_memory` in the source
  float scale = 1.0f;                       ///< the value of the input of that name
};

/// Generated signature, by MLX's rules: each input `name`, then `name_shape`, `name_strides`, `name_ndim` if that word
/// stands in `source`; then the outputs. Inputs may have any strides (ensure_row_contiguous = false) except `rpb`,
/// `lengths`, `spans`, `scale`, `lse` and `delta`, which are dense; outputs are dense. The kernel writes every element
/// of its outputs.
struct KernelSource : KernelText, KernelLaunch {};

/// Name of the input that holds the scale: float32, one element.
inline constexpr const char* kScaleName = "na_scale";
/// Name of the input that tells spans (spans.h), where a call has them.
inline constexpr const char* kSpansName = "na_spans";

/// Why no kernel runs on a device of that architecture; nothing when kernels do.
std::optional<std::string> objection(Target target);
/// Why the target has no kernels for the call and its gradients; nothing when it has. Problems are `nearest` ones
/// (spans.h), here and below.
std::optional<std::string> objection(const Problem& problem, Target target);

/// The kernel of a problem to which there is no objection. `has_rpb` of `backward_query` and `qk_backward_query` means
/// that the gradient of rpb is an output too, as partials [parts, Hq, 2K0-1, 2K1-1, 2K2-1] that `rpb_sum` adds up.
KernelText kernel_text(const Problem& problem, KernelId kernel, Target target);
KernelLaunch kernel_launch(const Problem& problem, KernelId kernel, Target target);
KernelSource kernel_source(const Problem& problem, KernelId kernel, Target target);

const char* kernel_name(KernelId kernel);

/// What a part of the operation launches, in order.
std::vector<KernelId> kernels_of(const Problem& problem, Role role);

}  // namespace natten::fast
