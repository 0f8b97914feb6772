// The rows of its neighbors' keys and values that a rank needs.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "distributed/slabs.h"
#include "distributed/split.h"
#include "distributed/transport.h"

namespace natten::distributed {

/// Tensors (key and value, whose types and last axes may differ) cut along `axis` of the arrays.
struct HaloRequest {
  const SlabPlan& plan;
  int axis;
  Group group;
  mx::Stream link;          ///< of the messages
  std::vector<Rows> parts;  ///< rows of the own slab that are wanted as arrays of their own
};

/// By tensor. Gradients of all of these add up in the tensors: own rows first, then parts in their order, then what
/// comes back from the neighbors.
struct Halo {
  Arrays own;                 ///< the slab itself, not copied
  std::vector<Arrays> parts;  ///< by part, then tensor; not copied
  Arrays left, right;         ///< of neighbors, in the order of the axis; perhaps no rows
  mx::array done;             ///< what a rank returns must come after it (Delivery)
};

Halo exchange_halo(const Arrays& tensors, const HaloRequest& request, mx::Stream s);

}  // namespace natten::distributed
