// Runs a function over blocks of queries, so that memory is bounded by a block and not by tokens x window.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "mlx/array.h"
#include "mlx/stream.h"

namespace natten {

namespace mx = mlx::core;

/// How queries are cut into blocks: of about the same memory, but for larger problems larger ones, so that a graph has
/// some thousands of nodes.
struct Cut {
  static constexpr std::int64_t kMostBlocks = 64;

  std::int64_t queries;
  std::int64_t bytes_per_query;  ///< estimate of the temporary memory of one query
  std::int64_t most_blocks = kMostBlocks;
};

/// Maps `[per-query arrays of the block ..., shared arrays ...]` and the block's range of queries to results whose
/// axis 1 is the queries of the block.
using BlockFunction =
    std::function<std::vector<mx::array>(const std::vector<mx::array>& arrays, std::int64_t first, std::int64_t last)>;

/// Why blocks of a graph of bounded size do not fit MLX's memory limit; nothing when they do.
std::optional<std::string> block_objection(const Cut& cut);

/// Results of all queries, joined on axis 1. `per_query` arrays have `queries` entries on axis 1; `shared` ones are
/// seen whole by every block. With more than one block, a block starts when the one before is done, and backward
/// recomputes its intermediates. What may be traced (lengths too) must come through `arrays`: transformations do not
/// see what `function` captures. Throws std::invalid_argument where block_objection() has one.
std::vector<mx::array> in_blocks(const BlockFunction& function, const Cut& cut, const std::vector<mx::array>& per_query,
                                 const std::vector<mx::array>& shared, mx::Stream s);

}  // namespace natten
