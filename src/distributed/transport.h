// Messages between neighbors as nodes of a graph: differentiable, in one order on all ranks, never waiting in a circle.
#pragma once

#include <cstdint>
#include <vector>

#include "mlx/array.h"
#include "mlx/distributed/distributed.h"
#include "mlx/utils.h"

namespace natten::distributed {

namespace mx = mlx::core;

using Group = mx::distributed::Group;
using Arrays = std::vector<mx::array>;

/// What carries messages: `neighbors` where the group has send and recv, `gathers` where it has not (NCCL).
enum class Carrier : std::uint8_t { neighbors, gathers };
/// NATTEN_DISTRIBUTED_CARRIER=gathers chooses the other one where both would do.
Carrier carrier_of(const Group& group);

/// One message each way around the ring of ranks. Every rank makes the node, whether or not it sends.
struct Parcel {
  Arrays to_right;  ///< what this rank sends to the next one
  Arrays to_left;
  /// Shapes and types of what comes; as many as the neighbors send, which may have no elements.
  std::vector<mx::Shape> from_left, from_right;
  std::vector<mx::Dtype> left_types, right_types;
  /// By rank, elements of what is sent: gathers need them of all ranks.
  std::vector<std::int64_t> right_sizes, left_sizes;
};

struct Delivery {
  Arrays from_left, from_right;
  /// One element, there when messages have been sent and received. What a rank returns must come after it (`pin`),
  /// or a rank that only sends would not take part in the evaluation, nor in the backward.
  mx::array done;
};

/// `after` holds back the messages; its gradients (zeros) come after those of the messages. One of them must depend on
/// everything that is differentiated, so that all ranks take part in the backward, which is the same node the other
/// way.
Delivery exchange(const Parcel& parcel, const Arrays& after, const Group& group, mx::StreamOrDevice s);

/// Bytes that this process has given to its neighbors so far.
std::int64_t bytes_sent();

}  // namespace natten::distributed
