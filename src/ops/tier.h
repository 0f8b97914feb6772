// A tier: one way to compute neighborhood attention. A table of functions on MLX arrays that knows nothing of autograd,
// vmap or Python. All arrays are canonical (problem.h).
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "definition/problem.h"
#include "mlx/array.h"
#include "mlx/stream.h"

namespace natten {

namespace mx = mlx::core;

inline constexpr const char* kPure = "pure";
inline constexpr const char* kFast = "fast_metal";
inline constexpr const char* kFastCuda = "fast_cuda";  // what kFast is called with an NVIDIA GPU
inline constexpr const char* kCompiled = "nanobind";

/// Why a tier cannot serve a call; nothing when it can.
using Objection = std::optional<std::string>;

/// Inputs of Op::attention. rpb is float32 (float64 where the call sums in float64), lengths int32 [B, 3].
struct AttentionInputs {
  mx::array query;
  mx::array key;
  mx::array value;
  std::optional<mx::array> rpb;
  std::optional<mx::array> lengths;
};

/// What a call would run on its tier, for `explain`. Empty strings where the tier has nothing to say.
struct KernelChoice {
  std::string kernel;
  std::string tile;
};

struct Tier {
  std::string name;
  /// Why no device of this machine can run the tier now; nothing when one can.
  std::function<Objection()> unavailable;
  /// The only source of dispatch, of `explain` and of the support matrix. Judges the call as if a device existed.
  std::function<Objection(const Problem&)> supports;
  std::function<KernelChoice(const Problem&)> choice;
  /// What the kernels of a call that `supports` accepts would cost, a line for each; unset where there is no model.
  std::function<std::string(const Problem&)> cost;

  /// The forward never stores the attention matrix.
  bool is_fused = false;

  /// When set, MLX differentiates and maps what the functions below return (the pure tier), and backwards are unused.
  bool differentiated_by_mlx = false;

  /// -> out, lse. Unless differentiated_by_mlx both are outputs of one primitive whose inputs are the given arrays in
  /// order (query, key, value, rpb?, lengths?), each perhaps behind a change of layout such as `contiguous`.
  std::function<std::pair<mx::array, mx::array>(const Problem&, const AttentionInputs&, mx::Stream)> forward;
  /// (inputs, out, lse, dout, dlse) -> dq [, drpb]
  std::function<std::vector<mx::array>(const Problem&, const AttentionInputs&, const mx::array& out,
                                       const mx::array& lse, const mx::array& dout, const mx::array& dlse, mx::Stream)>
      backward_query;
  /// (inputs, out, lse, dout, dlse) -> dk, dv
  std::function<std::vector<mx::array>(const Problem&, const AttentionInputs&, const mx::array& out,
                                       const mx::array& lse, const mx::array& dout, const mx::array& dlse, mx::Stream)>
      backward_key_value;

  /// Optional: (inputs, out, lse, dout, dlse) -> dq [, drpb], dk, dv in one pass, for when both sides are asked for.
  std::function<std::vector<mx::array>(const Problem&, const AttentionInputs&, const mx::array& out,
                                       const mx::array& lse, const mx::array& dout, const mx::array& dlse, mx::Stream)>
      backward;

  /// (query, key, rpb?, lengths?) -> logits
  std::function<mx::array(const Problem&, const mx::array& query, const mx::array& key,
                          const std::optional<mx::array>& rpb, const std::optional<mx::array>& lengths, mx::Stream)>
      qk;
  /// (query, key, rpb?, lengths?, dlogits) -> dq [, drpb]
  std::function<std::vector<mx::array>(const Problem&, const mx::array& query, const mx::array& key,
                                       const std::optional<mx::array>& rpb, const std::optional<mx::array>& lengths,
                                       const mx::array& dlogits, mx::Stream)>
      qk_backward_query;
  /// (query, key, rpb?, lengths?, dlogits) -> dk
  std::function<mx::array(const Problem&, const mx::array& query, const mx::array& key,
                          const std::optional<mx::array>& rpb, const std::optional<mx::array>& lengths,
                          const mx::array& dlogits, mx::Stream)>
      qk_backward_key;
  /// (attn, value, lengths?) -> out
  std::function<mx::array(const Problem&, const mx::array& attn, const mx::array& value,
                          const std::optional<mx::array>& lengths, mx::Stream)>
      av;
  /// (attn, value, lengths?, dout) -> dattn
  std::function<mx::array(const Problem&, const mx::array& attn, const mx::array& value,
                          const std::optional<mx::array>& lengths, const mx::array& dout, mx::Stream)>
      av_backward_attn;
  /// (attn, value, lengths?, dout) -> dv
  std::function<mx::array(const Problem&, const mx::array& attn, const mx::array& value,
                          const std::optional<mx::array>& lengths, const mx::array& dout, mx::Stream)>
      av_backward_value;
};

}  // namespace natten
