// The contract between operations and tiers. A tier is one way to compute neighborhood attention: a small table of
// functions on MLX arrays that knows nothing of autograd, vmap or Python. Arrays are canonical (problem.h).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "definition/problem.h"
#include "mlx/array.h"
#include "mlx/stream.h"

namespace natten {

namespace mx = mlx::core;

using Arrays = std::vector<mx::array>;

/// Why a tier cannot serve a call; nothing when it can.
using Objection = std::optional<std::string>;

// clang-format off
/// Inputs, results, cotangents of results, gradients of inputs in the order of the inputs.
enum class Argument : std::uint8_t {
  query, key, value, attn, rpb, key_before, value_before, key_after, value_after, extra_key, extra_value, lengths,
  out, lse, logits,
  dout, dlse, dlogits,
  dquery, dkey, dvalue, dattn, drpb, dkey_before, dvalue_before, dkey_after, dvalue_after, dextra_key, dextra_value
};
// clang-format on
using Arguments = std::vector<Argument>;

const char* name_of(Argument argument);
/// The input whose gradient it is.
Argument primal_of(Argument gradient);
/// The arrays of a role, in the order in which a tier gets and returns them. rpb is float32 (float64 where the call
/// sums in float64), lengths int32 [B, 3].
/// - forward: the operation's tensors, those before and after key and value?, extra key and value?, rpb?, lengths? ->
///   out, lse; logits; out
/// - backward: those, then of attention out, lse, dout, dlse, of qk dlogits, of av dout -> gradients. out and lse are
///   those of window and extra tokens together, so that the gradients of key and value need no more.
Arguments inputs_of(const Problem& problem, Role role);
Arguments outputs_of(const Problem& problem, Role role);

/// What a tier is asked to run.
struct Call {
  const Problem& problem;
  Role role;
  const Arrays& inputs;
  mx::Stream stream;

  const mx::array& operator[](Argument argument) const;
  std::optional<mx::array> find(Argument argument) const;
};

/// What a call would run on its tier, for `explain`. Empty strings where the tier has nothing to say.
struct KernelChoice {
  std::string kernel;
  std::string tile;
};

/// A step of decoding: the next rows of a first axis that is causal, and a ring of the rows that their windows reach.
struct StepCall {
  /// Of a full ring: the first axis has (kernel_size - 1) * dilation rows of keys before those of the queries.
  const Problem& problem;
  /// In the caller's rank: query, key and value [B, rows, grid..., heads, dim]; the rings of keys and of values [B,
  /// dilation, kernel_size, grid..., kv_heads, dim]; the rows before, int64.
  const Arrays& inputs;
  /// The same out, keys and values as operations with derivatives.
  std::function<Arrays(const Arrays&)> composed;
  mx::Stream stream;
};

struct Tier {
  std::string name;
  /// Why no device of this machine can run the tier now; nothing when one can.
  std::function<Objection()> unavailable;
  /// The only source of dispatch, of `explain` and of the support matrix. Judges the call as if a device existed. A
  /// tier gets calls of which it takes the forward and both parts of the backward. Where it does not take extra tokens,
  /// it gets their window, in the type of the sums.
  std::function<Objection(const Problem&, Role)> supports;
  /// Unless differentiated_by_mlx, the results are outputs of one primitive whose inputs are the given arrays in order,
  /// each perhaps behind a change of layout such as `contiguous` (further outputs may be scratch that must live as
  /// long); or a composition of MLX operations, which know vmap.
  std::function<Arrays(const Call&)> run;
  /// out, the rings with the new rows, and the rows then; unset where the tier has no kernel for all of it.
  std::function<Arrays(const StepCall&)> step;

  std::function<KernelChoice(const Problem&)> choice;
  /// What the kernels of a call that the tier takes would cost, a line for each; unset where there is no model.
  std::function<std::string(const Problem&)> cost;
  /// Whether a call that it takes may have its keys in pieces; unset: none may.
  std::function<bool(const Problem&)> takes_pieces;

  unsigned takes = 0;                  ///< the options (problem.h) that its calls may have
  bool is_fused = false;               ///< the forward never stores the attention matrix
  bool differentiated_by_mlx = false;  ///< MLX differentiates and maps what `run` returns, which is the forward only
};
using TierPtr = std::shared_ptr<const Tier>;

/// Why a tier does not take a call, be there a device or not.
Objection objection(const Tier& tier, const Problem& problem);

inline constexpr const char* kPure = "pure";
inline constexpr const char* kFast = "fast_metal";
inline constexpr const char* kFastCuda = "fast_cuda";  // what kFast is called with an NVIDIA GPU
inline constexpr const char* kCompiled = "nanobind";

}  // namespace natten
