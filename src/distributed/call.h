// The operation under the name of the function that was called: what the bindings use, so that errors name it.
#pragma once

#include "natten/distributed.h"
#include "ops/validate.h"

namespace natten::distributed {

AttentionResult attention(const Caller& caller, const mx::array& query, const mx::array& key, const mx::array& value,
                          const Neighborhood& neighborhood, const AttentionOptions& options, const SlabOptions& slabs);

/// The axis of the arrays that `slabs` names.
int array_axis(const Caller& caller, const SlabOptions& slabs);

}  // namespace natten::distributed
