// delta = rowsum(out * dout) - dlse, the term that both backward kernels subtract from dout . v.
#pragma once

#include <cstdint>
#include <vector>

#include "native/cpu/kernels.h"

namespace natten::cpu {

/// For every query, laid out like lse; 0 where a sample has no query, whatever stands in its padding.
std::vector<float> delta_of(const AttentionInputs& inputs, const SavedForward& saved);

}  // namespace natten::cpu
