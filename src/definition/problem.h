// One attention call, as plain data: what validation yields, tiers judge and kernels receive. No MLX types.
#pragma once

#include <array>
#include <cstdint>
#include <iterator>
#include <optional>

#include "definition/span.h"
#include "definition/window.h"

namespace natten {

inline constexpr int kAxes = 3;  // every call is rank 3: ranks 1 and 2 get leading axes of length 1

inline constexpr bool operator==(const Axis& a, const Axis& b) {
  return a.length == b.length && a.kernel_size == b.kernel_size && a.stride == b.stride && a.dilation == b.dilation &&
         a.gna_stride == b.gna_stride && a.is_causal == b.is_causal && a.is_circular == b.is_circular;
}

/// Of a batch: its axes are flattened into one MLX dimension, which is a 32-bit integer.
inline constexpr std::int64_t kMaxTokens = 0x7fffffff;

enum class Op : std::uint8_t { attention, qk, av };
/// The part of an operation that a tier computes.
enum class Role : std::uint8_t {
  forward,
  backward_query,      ///< gradients of what queries have: query and rpb, or attn
  backward_key_value,  ///< gradients of what keys have: key and value, as far as the operation reads them
  backward,            ///< both from one pass, which a tier need not have
  backward_extra,      ///< gradients of extra keys and values, for which a tier need not have a kernel
  backward_all,        ///< all of them from one pass, which a tier need not have
};
enum class FloatType : std::uint8_t { float16, bfloat16, float32, float64 };
enum class DeviceType : std::uint8_t { cpu, gpu };

/// Keys and values in three arrays each: of the rows of one axis the first ones and the last ones lie apart, as those
/// of other ranks do.
struct KeyPieces {
  int axis = 0;
  std::int64_t before = 0, after = 0;  ///< rows of key_before and key_after; key has the others

  bool operator==(const KeyPieces&) const = default;
};

/// Canonical arrays, heads last: query [B, L0, L1, L2, Hq, D], key [B, L0, L1, L2, Hkv, D], value [.., Hkv, Dv],
/// out [B, O0, O1, O2, Hq, Dv], lse [B, O0, O1, O2, Hq], logits and attn [B, O0, O1, O2, Hq, K0*K1*K2],
/// rpb [Hq, 2*K0-1, 2*K1-1, 2*K2-1], lengths int32 [B, 3]; O = ceil(L / stride). With spans, query has their query rows
/// in the place of L, key and value their key rows, and O is query_count(). Extra tokens, which every query attends:
/// extra_key [B, 1, 1, N, Hkv, D] of key's type, extra_value [B, 1, 1, N, Hkv, Dv] of value's.
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
  /// Absent where the arrays hold whole axes. Every key of every computed query's window is present. On a circular axis
  /// without lengths, key_start is such that a key's row is its unwrapped token minus key_start, to which the length
  /// must be added or from which it must be taken once where that leaves [0, length); with lengths the same with the
  /// sample's length.
  std::optional<std::array<AxisSpan, kAxes>> spans{};
  std::optional<KeyPieces> pieces{};  ///< of Op::attention; the key rows of spans are those of all pieces
  std::int64_t extra_tokens = 0;      ///< N, of Op::attention

  bool operator==(const Problem&) const = default;

  AxisSpan span(int axis) const { return spans ? (*spans)[axis] : whole(axes[axis]); }

  /// Of the whole axes.
  std::int64_t tokens() const { return axes[0].length * axes[1].length * axes[2].length; }
  /// Rows of the arrays.
  std::int64_t query_tokens() const { return span(0).query_rows * span(1).query_rows * span(2).query_rows; }
  std::int64_t key_tokens() const { return span(0).key_rows * span(1).key_rows * span(2).key_rows; }
  std::int64_t kernel_volume() const { return axes[0].kernel_size * axes[1].kernel_size * axes[2].kernel_size; }
  /// Computed ones, of one axis and of all.
  std::int64_t queries(int axis) const { return query_count(axes[axis], span(axis)); }
  std::int64_t queries() const { return queries(0) * queries(1) * queries(2); }
  bool is_circular() const { return axes[0].is_circular || axes[1].is_circular || axes[2].is_circular; }
};

/// Sums are float64 where an operand is, else float32.
inline bool is_float64(const Problem& p) {
  return p.query_type == FloatType::float64 || p.key_type == FloatType::float64 || p.value_type == FloatType::float64;
}

/// What a call may have beyond whole axes on which each window has K keys or a causal border cuts it. A tier gets only
/// calls with options that it names (Tier::takes), so that nobody has to remember to decline a new one.
enum Option : unsigned { kSpan = 1, kCircularAxis = 2, kLongCausalKernel = 4, kExtraTokens = 8 };
inline constexpr const char* kOptionNames[] = {"a span of queries or keys", "a circular axis",
                                               "a causal kernel longer than its axis", "additional tokens"};
static_assert(kExtraTokens == 1u << (std::size(kOptionNames) - 1), "a name for each option");

inline unsigned options_of(const Problem& p) {
  // All fields by name: a new one does not compile until it is decided whether it is an option.
  const auto& [op, rank, device, batch, heads, kv_heads, head_dim, value_dim, axes, scale, query_type, key_type,
               value_type, has_rpb, has_lengths, spans, pieces, extra_tokens] = p;  // pieces: Tier::takes_pieces
  unsigned options = 0;
  if (extra_tokens > 0) options |= kExtraTokens;
  if (spans) options |= kSpan;
  for (const auto& [length, kernel_size, stride, dilation, gna_stride, is_causal, is_circular] : axes) {
    if (is_circular) options |= kCircularAxis;
    if (dilation > length / kernel_size) options |= kLongCausalKernel;
  }
  return options;
}

}  // namespace natten
