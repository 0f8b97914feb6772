// Who holds what when an axis is spread over ranks: slabs, their halos, and which rows travel between which ranks.
// Plain integers, no MLX: the calls, the command `natten-mlx plan` and the tests read the same numbers.
#pragma once

#include <cstdint>
#include <vector>

#include "definition/problem.h"

namespace natten::distributed {

/// The part of the axis that one rank holds, in positions of the whole axis.
struct Slab {
  std::int64_t start = 0;
  std::int64_t rows = 0;
  std::int64_t first_output = 0;  ///< output rows [first_output, first_output + outputs) of the whole result
  std::int64_t outputs = 0;       ///< queries in the slab that are multiples of the query stride
  std::int64_t left = 0;          ///< rows needed before the slab (past the axis' ends where it is circular)
  std::int64_t right = 0;         ///< rows needed after it

  std::int64_t end() const { return start + rows; }
};

/// Rows travel from neighbor to neighbor, one message each way in a hop. Slabs that are smaller than the halo need
/// several hops: what comes from the left in one is handed on to the right in the next, as far as somebody needs it.
struct Hop {
  /// By rank: rows sent to the next rank, the last rows of the slab that is `hop` ranks before; 0 where there are none.
  std::vector<std::int64_t> to_right;
  /// By rank: rows sent to the rank before, the first rows of the slab that is `hop` ranks after.
  std::vector<std::int64_t> to_left;
};

struct SlabPlan {
  std::vector<Slab> slabs;
  std::vector<Hop> hops;
  bool is_circular = false;
  /// Queries at both ends of a slab that are computed after the halo came, the same for every rank so that all build
  /// the same graph; the others read keys of their own slab alone. Both 0: on some rank none would be left.
  std::int64_t left_border = 0;
  std::int64_t right_border = 0;

  int size() const { return static_cast<int>(slabs.size()); }
  /// The neighbors of a rank in the ring that messages travel.
  int right_of(int rank) const { return (rank + 1) % size(); }
  int left_of(int rank) const { return (rank + size() - 1) % size(); }
  /// Rows that a rank keeps of the slab `distance` ranks before (after) it.
  std::int64_t kept_left(int rank, int distance) const;
  std::int64_t kept_right(int rank, int distance) const;
  /// Rows that a rank sends in all hops.
  std::int64_t sent(int rank) const;
};

/// An axis to be spread.
struct SlabAxis {
  Axis axis;
  bool has_lengths = false;  ///< samples may be shorter than the axis: halos are those of any length
};

/// The keys of the computed queries at positions [start, end), from the first to the last; past the ends of the axis
/// where it is circular. Empty where no query is computed.
Range<std::int64_t> needed_keys(const SlabAxis& axis, std::int64_t start, std::int64_t end);

/// `rows` are those of each rank's slab, in rank order, each at least 1; their sum is axis.length.
SlabPlan plan_slabs(const SlabAxis& axis, const std::vector<std::int64_t>& rows);

/// Slabs as equal as possible, the longer ones first. Empty slabs where there are more parts than rows.
std::vector<std::int64_t> equal_rows(std::int64_t length, int parts);

}  // namespace natten::distributed
