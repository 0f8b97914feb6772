// Every tuning number of the CPU kernels, each with the measurement that chose it. Percentages are of one core's FMA
// peak, measured in the same run.
#pragma once

namespace natten::cpu::tuning {

/// Loops below this many floating-point operations run on the calling thread.
inline constexpr double kSerialFlops = 4e6;

/// Queries (or keys) of one work item of the generic kernels.
inline constexpr int kGenericItem = 64;

/// Work items over which the gradient of the position bias is summed separately, all heads together.
inline constexpr int kBiasGradientParts = 64;

/// Forward pass, tiled kernels. Places of the last axis of one task; rows (places of the outer axes) of a part at
/// least; packed keys and values of a task, which should stay in the second-level cache; tasks at least, where rows allow.
inline constexpr int kForwardRow = 64;
inline constexpr int kForwardLeastRow = 64;
inline constexpr int kForwardLeastRows = 8;
inline constexpr int kForwardPackedBytes = 1 << 20;
inline constexpr int kForwardLeastTasks = 8;

/// Values are read in place, not packed, up to this distance of two tokens in rows of one head. On 4 heads of 32
/// channels in place is 8 % faster, on 8 heads of 64 packing is 12 % faster: pages and sets of the cache.
inline constexpr int kForwardInPlaceStep = 4;
/// Along a single axis, from this kernel size on lanes are queries and keys are broadcast ("query lanes"); below, shift.
inline constexpr int kQueryLanesKernel = 24;
/// Two tiles of queries share every key from this kernel size on: half the loads, but a longer border.
inline constexpr int kQueryLanesTwoTiles = 96;
/// Places of one task of query lanes, in kernel sizes: a task packs one kernel size more.
inline constexpr int kQueryLanesPart = 4;

/// Backward pass, tiled kernel. Tasks a pass is cut into where it can be, and the least places of a part: every part
/// computes the logits of the pairs that cross its border a second time.
inline constexpr int kLeastTasks = 8;
inline constexpr int kLeastPart = 8;
/// Longest row (places of the last axis) that one task packs.
inline constexpr int kLongestRow = 512;
/// Rows of keys between two passes over the packed queries, and the memory these rows may take.
inline constexpr int kKeyBlockRows = 4;
inline constexpr int kKeyBlockBytes = 512 << 10;
/// Slots of a row of scores, and bytes of all scores at a time, of which there are two kinds.
inline constexpr int kSlotBlock = 64;
inline constexpr int kScoreBytes = 16 << 10;
/// Split form: slots of a query up to which all are packed.
inline constexpr int kMostPackedSlots = 1024;

}  // namespace natten::cpu::tuning
