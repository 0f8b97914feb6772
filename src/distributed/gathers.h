// Messages between neighbors for groups that only gather (NCCL): every rank gets what all ranks send and keeps its own.
#pragma once

#include "distributed/transport.h"

namespace natten::distributed {

/// `exchange` by gathers.
Delivery exchange_by_gathers(const Parcel& parcel, const Arrays& after, const Group& group, mx::Stream s);

}  // namespace natten::distributed
