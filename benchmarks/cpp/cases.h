// The cases of the benchmark, with the forward and backward targets in percent of one core's FMA peak.
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
  double forward_target, backward_target;  ///< percent; 0: none
  bool bandwidth_bound = false;            ///< the forward target is of the bandwidth roofline
};

inline const std::vector<Case>& cases() {
  // clang-format off
  static const std::vector<Case> all = {
      {"1d-k7", 1, {1024, 1, 1}, 7, 4, 32, 50, 0, true},
      {"1d-k7-long", 1, {65536, 1, 1}, 7, 4, 32, 50, 0, true},
      {"1d-k31", 1, {4096, 1, 1}, 31, 4, 32, 45, 0},
      {"1d-k127", 1, {4096, 1, 1}, 127, 8, 64, 65, 0},
      {"1d-k2048", 1, {8192, 1, 1}, 2048, 4, 64, 78, 0},
      {"2d-k7", 2, {56, 56, 1}, 7, 4, 32, 55, 45},
      {"2d-k7-cached", 2, {56, 56, 1}, 7, 1, 32, 0, 0},
      {"2d-k13", 2, {64, 64, 1}, 13, 8, 64, 68, 58},
      {"2d-k13-cached", 2, {48, 48, 1}, 13, 1, 64, 0, 0},
      {"2d-k13-large", 2, {128, 128, 1}, 13, 4, 32, 0, 58},
      {"2d-k7-wide", 2, {128, 128, 1}, 7, 4, 128, 58, 45},
      {"3d-k3", 3, {16, 16, 16}, 3, 4, 32, 42, 0},
      {"3d-k5", 3, {16, 16, 16}, 5, 4, 32, 58, 0},
      {"3d-k7", 3, {16, 16, 16}, 7, 4, 32, 65, 45},
      {"3d-k7-cached", 3, {16, 16, 16}, 7, 1, 32, 0, 0},
  };
  // clang-format on
  return all;
}

inline Problem problem_of(const Case& c, FloatType type) {
  Problem p;
  p.rank = c.rank;
  p.batch = 1;
  p.heads = p.kv_heads = c.heads;
  p.head_dim = p.value_dim = c.dim;
  p.axes.fill(Axis{1, 1, 1, 1, 1, false});
  for (int a = 0; a < c.rank; ++a) p.axes[kAxes - c.rank + a] = Axis{c.length[a], c.kernel_size, 1, 1, 1, false};
  p.scale = 1.0 / 8;
  p.query_type = p.key_type = p.value_type = type;
  return p;
}

}  // namespace natten::bench
