// The cases of the benchmark, with the targets of the forward pass and of forward and backward together, in percent of
// the bound of one thread.
#pragma once

#include <string>
#include <vector>

#include "definition/problem.h"

namespace natten::bench {

struct Case {
  std::string name;
  int rank;
  std::int64_t length[kAxes];  ///< the first `rank` count
  std::int64_t kernel_size;    ///< on every axis
  std::int64_t heads, dim;
  double forward_target, training_target;  ///< percent; 0: none
};

inline const std::vector<Case>& cases() {
  // clang-format off
  static const std::vector<Case> all = {
      {"1d-k7", 1, {1024, 1, 1}, 7, 4, 32, 60, 45},
      {"1d-k7-long", 1, {32768, 1, 1}, 7, 8, 64, 60, 45},
      {"1d-k31", 1, {4096, 1, 1}, 31, 4, 32, 50, 45},
      {"1d-k127", 1, {4096, 1, 1}, 127, 8, 64, 65, 55},
      {"1d-k2048", 1, {8192, 1, 1}, 2048, 4, 64, 85, 70},
      {"2d-k7", 2, {56, 56, 1}, 7, 4, 32, 55, 48},
      {"2d-k7-cached", 2, {56, 56, 1}, 7, 1, 32, 0, 0},
      {"2d-k13", 2, {64, 64, 1}, 13, 8, 64, 68, 60},
      {"2d-k13-cached", 2, {48, 48, 1}, 13, 1, 64, 0, 0},
      {"2d-k13-large", 2, {128, 128, 1}, 13, 4, 32, 0, 0},
      {"2d-k7-wide", 2, {128, 128, 1}, 7, 4, 128, 58, 48},
      {"2d-k80", 2, {96, 96, 1}, 80, 4, 64, 75, 65},
      {"3d-k3", 3, {16, 16, 16}, 3, 4, 32, 45, 35},
      {"3d-k5", 3, {16, 16, 16}, 5, 4, 32, 60, 50},
      {"3d-k7", 3, {16, 16, 16}, 7, 4, 32, 70, 58},
      {"3d-k7-cached", 3, {16, 16, 16}, 7, 1, 32, 0, 0},
  };
  // clang-format on
  return all;
}

/// Large: a batch whose results exceed 64 MiB, whatever the type.
inline Problem problem_of(const Case& c, FloatType type, bool is_large) {
  Problem p;
  p.rank = c.rank;
  const std::int64_t elements = c.length[0] * c.length[1] * c.length[2] * c.heads * c.dim;
  p.batch = is_large ? (std::int64_t{32} << 20) / elements + 1 : 1;
  p.heads = p.kv_heads = c.heads;
  p.head_dim = p.value_dim = c.dim;
  p.axes.fill(Axis{1, 1, 1, 1, 1, false});
  for (int a = 0; a < c.rank; ++a) p.axes[kAxes - c.rank + a] = Axis{c.length[a], c.kernel_size, 1, 1, 1, false};
  p.scale = 1.0 / 8;
  p.query_type = p.key_type = p.value_type = type;
  return p;
}

}  // namespace natten::bench
