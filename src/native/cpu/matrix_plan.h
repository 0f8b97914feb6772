// How problems are cut for matrix units: tiles of 16 queries that lie in a box, and the box of keys around them.
#pragma once

#include "definition/problem.h"

namespace natten::cpu {

struct MatrixTile {
  std::int64_t queries[kAxes];  ///< of a tile, per axis
  bool is_line;                 ///< every query attends one row of keys: pairs of keys lie along the last axis
  double cycles;                ///< of the forward pass of a tile, about
};

/// The best tile for AMX.
MatrixTile matrix_tile(const Problem& problem);

/// Whether there is a matrix unit in use, and the problem one that AMX computes faster than vectors do.
bool takes_matrix_unit(const Problem& problem);

/// The same of the backward pass, whose sums over queries pass through memory: 0.73 to 0.92 times the time of vectors
/// with 64 channels and windows of 13x13 or more, but 1.03 with 32 channels, and along one axis.
bool takes_matrix_unit_backward(const Problem& problem);

/// Memory of a thread above which a task of the backward pass is left to vectors: large planes of 3-D windows.
inline constexpr std::int64_t kMatrixScratchBytes = 64 << 20;

}  // namespace natten::cpu
