// Calls of the functions that Highway compiled once per SIMD target. To be included after hwy/highway.h.
#pragma once

#include "hwy/highway.h"

namespace natten::cpu {

/// The target in use, of this library alone: it neither sees nor disturbs other users of Highway in the process.
hwy::ChosenTarget& chosen_target();

}  // namespace natten::cpu

/// The HWY_EXPORTed function for the target in use.
#if (HWY_TARGETS & (HWY_TARGETS - 1)) == 0
#define NATTEN_DISPATCH(function) HWY_STATIC_DISPATCH(function)
#else
#define NATTEN_DISPATCH(function) (*(HWY_DISPATCH_TABLE(function)[::natten::cpu::chosen_target().GetIndex()]))
#endif
