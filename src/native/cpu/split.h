// The split form. Its six functions are three sweeps: products of a query with the keys of its window,
// sums of a window's keys weighted by slot, and the transpose of that sum.
#pragma once

#include "native/cpu/tile_tasks.h"

namespace natten::cpu::split {

enum class Kind {
  products,  ///< slots = factor * query . key + rpb
  sums,      ///< query = factor * sum over slots of slot * key; drpb
  key_sums,  ///< key = factor * sum over the queries that attend it of slot * query
};

/// `keys` and `queries` have `dim` channels, `slots` one element per slot and query. Each kind writes one of them.
struct Call {
  Kind kind;
  Tensor keys;
  Tensor queries;
  bool over_tokens;  ///< `queries` has a row per token, not per output position
  Tensor slots;
  std::int64_t dim;
  float factor = 1.0f;
  float empty = 0.0f;          ///< products: the value of empty slots
  const float* rpb = nullptr;  ///< products: added to the slots
  float* drpb = nullptr;       ///< sums: becomes the sum of the slots
};

}  // namespace natten::cpu::split
