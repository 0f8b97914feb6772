// Neighborhood attention on arrays that are spread over machines: each rank of a group holds a slab of one spatial axis
// of query, key and value, in rank order. Only the rows of keys and values that its queries need come from its
// neighbors, and their gradients go back to them.
//
// Every rank makes the same calls in the same order, forward and backward, and evaluates the results.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "mlx/array.h"
#include "mlx/distributed/distributed.h"
#include "mlx/utils.h"
#include "natten/attention.h"
#include "natten/neighborhood.h"

namespace natten::distributed {

namespace mx = mlx::core;

struct SlabOptions {
  std::optional<mx::distributed::Group> group;  ///< default: mx::distributed::init()
  int axis = 0;                                 ///< spatial axis that is spread; negative counts from the last
  /// Rows of every rank, at least 1 each. Given, the call sends nothing before its messages; otherwise it gathers them
  /// and throws on every rank where ranks do not share an argument.
  std::optional<std::vector<std::int64_t>> rows;
  /// Whether queries that need no halo are computed apart from the others, while messages travel. Default: where
  /// messages have a stream of their own, as on a GPU.
  std::optional<bool> overlap;
  /// CPU stream of the messages; default: the one that MLX's own communication uses. All communication of a group must
  /// be on one stream.
  mx::StreamOrDevice communication_stream = {};
};

/// This rank's rows of natten::attention on the whole arrays. rpb and additional tokens are whole on every rank and get
/// this rank's part of their gradient (sum_over_ranks adds it up); lengths are of the whole axes.
AttentionResult attention(const mx::array& query, const mx::array& key, const mx::array& value,
                          const Neighborhood& neighborhood, const AttentionOptions& options = {},
                          const SlabOptions& slabs = {});

/// This rank's slab of an array [B, spatial..., ...] that all ranks hold: as equal as possible, longer slabs first. Its
/// gradient is 0 outside of the slab.
mx::array shard(const mx::array& x, const SlabOptions& slabs = {}, mx::StreamOrDevice s = {});

/// The whole array, on every rank. The gradients of all ranks add up.
mx::array gather(const mx::array& x, const SlabOptions& slabs = {}, mx::StreamOrDevice s = {});

/// The sums over all ranks, in one message for each dtype: for gradients of parameters that all ranks hold.
std::vector<mx::array> sum_over_ranks(const std::vector<mx::array>& arrays,
                                      const std::optional<mx::distributed::Group>& group = {},
                                      mx::StreamOrDevice s = {});

}  // namespace natten::distributed
