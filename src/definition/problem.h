// One attention call, as plain data: what validation yields, tiers judge and kernels receive. No MLX types.
#pragma once

#include <array>
#include <cstdint>

#include "definition/window.h"

namespace natten {

using Axis = BasicAxis<std::int64_t>;

inline constexpr int kAxes = 3;  // every call is rank 3: ranks 1 and 2 get leading axes of length 1

inline constexpr bool operator==(const Axis& a, const Axis& b) {
  return a.length == b.length && a.kernel_size == b.kernel_size && a.stride == b.stride && a.dilation == b.dilation &&
         a.gna_stride == b.gna_stride && a.is_causal == b.is_causal;
}

/// Of a batch: its axes are flattened into one MLX dimension, which is a 32-bit integer.
inline constexpr std::int64_t kMaxTokens = 0x7fffffff;

enum class Op : std::uint8_t { attention, qk, av };
enum class FloatType : std::uint8_t { float16, bfloat16, float32, float64 };
enum class DeviceType : std::uint8_t { cpu, gpu };

/// Canonical arrays, heads last: query [B, L0, L1, L2, Hq, D], key [B, L0, L1, L2, Hkv, D], value [.., Hkv, Dv],
/// out [B, O0, O1, O2, Hq, Dv], lse [B, O0, O1, O2, Hq], logits and attn [B, O0, O1, O2, Hq, K0*K1*K2],
/// rpb [Hq, 2*K0-1, 2*K1-1, 2*K2-1], lengths int32 [B, 3]; O = ceil(L / stride).
struct Problem {
  Op op = Op::attention;
  int rank = 1;  ///< of the caller's call; leading `kAxes - rank` axes are trivial
  DeviceType device = DeviceType::cpu;
  std::int64_t batch = 0;
  std::int64_t heads = 0;      ///< query heads; heads % kv_heads == 0
  std::int64_t kv_heads = 0;   ///< query head h reads key/value head h / (heads / kv_heads)
  std::int64_t head_dim = 0;   ///< D of query and key; 0 for Op::av
  std::int64_t value_dim = 0;  ///< Dv; 0 for Op::qk
  std::array<Axis, kAxes> axes{};
  double scale = 1.0;
  FloatType query_type = FloatType::float32;  ///< of query (of attn for Op::av), and of the result
  FloatType key_type = FloatType::float32;
  FloatType value_type = FloatType::float32;
  bool has_rpb = false;
  bool has_lengths = false;

  bool operator==(const Problem&) const = default;

  std::int64_t tokens() const { return axes[0].length * axes[1].length * axes[2].length; }
  std::int64_t kernel_volume() const { return axes[0].kernel_size * axes[1].kernel_size * axes[2].kernel_size; }
  std::int64_t queries() const {
    std::int64_t count = 1;
    for (const Axis& axis : axes) count *= output_length(axis.length, axis.stride);
    return count;
  }
};

/// Sums are float64 where an operand is, else float32.
inline bool is_float64(const Problem& p) {
  return p.query_type == FloatType::float64 || p.key_type == FloatType::float64 || p.value_type == FloatType::float64;
}

}  // namespace natten
