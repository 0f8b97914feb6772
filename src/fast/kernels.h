// The kernels, one row each: what text generation, plans and costs need to know of them.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "fast/kernel_source.h"

namespace natten::fast {

/// What a kernel computes with. Engines differ in bodies and in how they are planned, not in arrays.
enum class Engine : std::uint8_t { simt, matrix, warpgroup, decode };
inline constexpr int kEngineCount = 4;
inline bool has_matrix_units(Engine engine) {
  return engine == Engine::matrix || engine == Engine::warpgroup;
}
const char* engine_name(Engine engine);

// clang-format off
enum class Array : std::uint8_t {
  none, query, key, value, extra_key, extra_value, rpb, lengths, spans, scale, out, lse, dout, dlse, delta, logits,
  dlogits, attn, dattn, dquery, dkey, dvalue, partials, drpb
};
// clang-format on

/// What the positions of a tile, or of an array, are.
enum class Side : std::uint8_t { none, queries, keys };

/// Kernels of one class have the same tile sizes.
enum class TileClass : std::uint8_t { forward, query_gradient, key_gradient, split };

struct KernelRow {
  const char* name;
  TileClass tile_class;
  Side held;                     ///< by threads, the other side streams past; none: no tiles
  std::array<Array, 12> inputs;  ///< those that a problem lacks, and `none`, drop out
  std::array<Array, 2> outputs;
  std::array<int, 2> products;                   ///< of a pair: D long, Dv long; without tiles: operations per element
  std::array<const char*, kEngineCount> bodies;  ///< nullptr: not on that engine
  /// @x is the tensor of array x, $x a word that depends on the plan (Writer::call), all else stands as it is.
  const char* call;

  bool has_tiles() const { return held != Side::none; }
  bool holds_keys() const { return held == Side::keys; }
  bool reads(Array array) const { return std::count(inputs.begin(), inputs.end(), array) > 0; }
  /// Whether the problem's gradient of rpb is summed up here.
  bool sums_bias(const Problem& problem) const { return problem.has_rpb && outputs[1] == Array::partials; }
  /// Whether the problem has extra tokens, which are attended here.
  bool attends_extra(const Problem& problem) const { return problem.extra_tokens > 0 && reads(Array::extra_key); }
  /// Arrays whose rows of channels stream past: A and B of plan.h. Without tiles, the first array of rows.
  std::array<Array, 2> streams() const;
  /// Numbers for each streamed position besides.
  int streamed_scalars() const;
  /// The first input of a side; none where there is none.
  Array first_input(Side side) const;
};

const KernelRow& row_of(KernelId kernel);

bool has_array(const Problem& problem, Array array);
/// `parts`: tables of partial sums of the gradient of rpb.
ArraySpec spec_of(const Problem& problem, Array array, std::int64_t parts = 1);
Side side_of(Array array);
/// D or Dv where that is the last axis, else 0.
std::int64_t channels_of(const Problem& problem, Array array);
ElementType type_of(const Problem& problem, Array array);

/// Of one head's table; 0 where there is no rpb.
std::int64_t bias_entries(const Problem& problem);

}  // namespace natten::fast
