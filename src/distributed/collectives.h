// shard, gather and sums under the name of the function that was called.
#pragma once

#include "natten/distributed.h"
#include "ops/validate.h"

namespace natten::distributed {

mx::array shard(const Caller& caller, const mx::array& x, const SlabOptions& slabs, mx::StreamOrDevice s);
mx::array gather(const Caller& caller, const mx::array& x, const SlabOptions& slabs, mx::StreamOrDevice s);

}  // namespace natten::distributed
