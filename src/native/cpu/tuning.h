// Every tuning number of the CPU kernels, each with the measurement that chose it. Percentages are of one core's FMA
// peak, measured in the same run.
#pragma once

#include <cstdint>

namespace natten::cpu::tuning {

/// Loops below this many floating-point operations run on the calling thread. Waking a worker takes 11 us, and a second
/// thread then finds none of the data in its cache: it breaks even at 1 Mflop (1-D K 7), 2 Mflop (1-D K 31) and 5 Mflop
/// (2-D K 7, on fewer tasks), that is 50 us of one thread, and gains 1.2 times at twice that
/// (benchmarks/cpp/pool_bench).
inline constexpr double kSerialFlops = 2e6;

/// Memory of the sums that tasks have of their own, of position biases and of extra tokens.
inline constexpr std::int64_t kTaskSumsBytes = 128 << 20;
/// Tables of windows of the samples that run at a time, where lengths differ.
inline constexpr std::int64_t kPlanBytes = 16 << 20;

/// Forward pass: places of the last axis of one task, and least rows of one, in places and in kernel
/// sizes (its border is packed twice).
inline constexpr int kForwardRow = 64;
inline constexpr int kForwardLeastRow = 64;
inline constexpr int kForwardLeastRows = 8;
inline constexpr int kForwardLeastKernels = 2;
/// Packed keys and values of a task, about, which should stay in the second-level cache.
inline constexpr std::int64_t kForwardPackedBytes = 1 << 20;
/// Scores (and packed queries) of the unfinished rows of one tile, at most, unless one row alone needs more.
inline constexpr std::int64_t kForwardScoreBytes = 512 << 10;
/// Windows whose scores, of one row of a tile, or whose packed keys and values take more are computed in segments; rows
/// of queries of a step then, scores of these rows and packed keys and values of a segment. At 31x31, which takes 61
/// KiB, segments take 1.15 times as long; a step of 8 rows and 256 KiB of scores 1.05 times at 80x80.
inline constexpr std::int64_t kSegmentedScoreBytes = 96 << 10;
inline constexpr std::int64_t kSegmentedPackedBytes = 8 << 20;
inline constexpr int kSegmentStep = 16;
inline constexpr std::int64_t kSegmentScoreBytes = 384 << 10;
inline constexpr std::int64_t kSegmentPackedBytes = 512 << 10;
/// Rows of queries of a step, whose queries and keys should not crowd each other out of the second-level cache. 32
/// instead of 16 at most: 2 % slower.
inline constexpr int kForwardLeastStep = 4, kForwardMostStep = 16;
/// Bytes of neighbouring heads of a token that a task reads at a time, at most; and places of the last axis of a task
/// and bytes of heads that are given up for the other where their packed keys would not fit the cache.
inline constexpr int kForwardLongestRun = 2048, kForwardShortRun = 512;
inline constexpr int kForwardShortRow = 32, kForwardShortestRow = 16;
/// Tasks at least, where rows allow: twice as many cost 2-D 56x56 K 7 4 %.
inline constexpr int kForwardLeastTasks = 8;
/// Values are read in place, not packed, up to this distance of two tokens, in floats. At 128 (4 heads of 32 channels)
/// packing is as fast for K 7 and 8 to 12 % faster for K 13 and 3-D: sets of the cache.
inline constexpr int kForwardInPlaceStep = 64;
/// The same where one row or plane of queries meets several of keys, as in a step of streaming, so that values are used
/// less often: 0.87 to 0.95 of the time at 256 and below, 1.3 at 1024.
inline constexpr int kFrameInPlaceStep = 256;
/// Along a single axis, from this kernel size on lanes are queries and keys are broadcast ("query lanes"); below,
/// shift.
inline constexpr int kQueryLanesKernel = 24;
/// Along a single axis, the direct design up to these kernel sizes where query and value have so many channels
/// together, or more: 0.8 times the time of query lanes at K 31, D 64, and 1.08 at K 47; 0.63 to 0.9 times that of
/// shift at K 7, but 1.05 at K 23, D 32 and 1.1 at D 16. Places of one of its tasks, and inputs that are fetched ahead:
/// 0.85 to 0.55 of the time at K 7, but 1.2 where all is in the second-level cache.
inline constexpr int kDirectKernel = 7, kDirectKernelWide = 35, kDirectChannels = 64;
inline constexpr int kDirectRow = 256;
inline constexpr std::int64_t kFarBytes = 1 << 20;
/// Two tiles of queries share every key from this kernel size on: half the loads, but a longer border.
inline constexpr int kQueryLanesTwoTiles = 96;
/// Places of one task of query lanes, in kernel sizes: a task packs one kernel size more.
inline constexpr int kQueryLanesPart = 4;
/// Packed keys and values of a task from which on blocks of queries pass by some keys at a time.
inline constexpr std::int64_t kLanesPackedBytes = 1 << 20;
inline constexpr int kLanesChunk = 512, kLanesBlock = 256;

/// Along a single axis, up to so many queries of windows of at least so many keys, "few queries": keys of a block whose
/// scores stay in the first-level cache, bytes of keys and values of a segment at least, and tasks at most.
inline constexpr int kFewQueries = 8;
inline constexpr int kFewKernel = 16;
inline constexpr int kFewBlock = 64;
inline constexpr std::int64_t kFewSegmentBytes = 256 << 10;
inline constexpr int kFewTasks = 32;

/// Backward pass and split form. A part computes the logits of the pairs that cross its border a second
/// time and packs their rows again: 16 parts instead of 8 cost 2-D 56x56 K 7 about 10 %. So a pass is cut into
/// kLeastTasks where parts of kLeastPart places (and two kernels) allow it, and into kManyTasks where parts are at
/// least kCheapPartKernels kernels long. Circular axes of rank 1 are left whole for fewer tasks: 0.73 of the time at K
/// 31 and 128 tokens.
inline constexpr int kLeastTasks = 8;
inline constexpr int kLeastCircularTasks = 4;
inline constexpr int kManyTasks = 32;
inline constexpr int kLeastPart = 8;
inline constexpr int kCheapPartKernels = 4;
/// Longest row (places of the last axis) that one task packs: its packed queries are to stay near the second-level
/// cache.
inline constexpr int kLongestRow = 512;
/// Rows of keys between two passes over the packed queries, and the memory these rows may take. A tile of queries comes
/// from the second- or third-level cache once per block: 3 bytes per cycle instead of 12 at D 64, K 13.
inline constexpr int kKeyBlockRows = 4;
inline constexpr int kKeyBlockBytes = 512 << 10;
/// A pass is cut into strips of at least so many tiles along the last axis, of which the memory is at most this, where
/// packed rows of all tiles would not fit the second-level cache: 0.85 times the time of 2-D 128x128 D 128 K 7. Any
/// limit from 0.8 to 2 MiB is within 3 %.
inline constexpr std::size_t kLeastStripTiles = 2;
/// Strips of a circular axis take the queries at its ends twice: 1.19 times the time of 2-D 64x64 D 64 K 13.
inline constexpr std::int64_t kStripBytes = 1280 << 10, kFoldedBytes = 2 << 20;
/// Scratch of a task from which on it keeps no ring of packed queries but packs them anew for every block of keys: 0.65
/// to 0.9 times the time of large 3-D windows, whose rings would take 70 to 240 MiB, and 1.03 to 1.05 of 2-D K 63; but
/// 1.22 of 3-D K 5, which shorter slabs of rows spare (0.94 to 0.99). A block of keys may take one of kAnewBlocks parts
/// of it, the queries that are packed at a time one of kAnewQueries.
inline constexpr std::int64_t kSweepBytes = 32 << 20;
inline constexpr int kAnewBlocks = 4, kAnewQueries = 64;
/// Slots of a row of scores, and bytes of all scores at a time, of which there are two kinds: both fit the first-level
/// cache next to a tile.
inline constexpr int kSlotBlock = 64;
inline constexpr int kScoreBytes = 16 << 10;
/// Queries of the rows that meet some slots at a time: they are to stay in the first-level cache. All rows at once take
/// 2-D 128x128 D 128 K 7 1.06 to 1.1 times as long.
inline constexpr std::int64_t kScoreQueryBytes = 32 << 10;
/// Along a single axis, from this kernel size on blocks of keys and queries are dense: 0.8 times the time of shift at
/// K 31, 0.5 at K 127, 0.4 at K 2048. Keys of one product (their scores fit the first-level cache), and keys that stay
/// in the second-level cache while all queries pass by, where windows are longer than that; 48 or 96 and 128 or 512
/// instead are within 3 %.
inline constexpr int kDenseKernel = 24;
inline constexpr int kDenseKeys = 64;
inline constexpr int kDenseChunk = 256;
/// Results of at least this many bytes are written past the caches: rows of one head, written through them, take two to
/// five times as long.
inline constexpr std::int64_t kStreamBytes = 512 << 10;
/// Split form: slots of a query up to which all are packed. Reading a few slots for every row of keys instead costs
/// 1.05 (gradients) to 4 times (qk, 3-D K 5): a page per query and row.
inline constexpr int kMostPackedSlots = 1024;

/// When a matrix unit pays, in cycles, fitted to cases from 5x5 to 13x13, 3-D and 1-D: the product of a tile and a step
/// on AMX; 16 exponentials with their mask and rounding; a channel of the queries and results of a
/// tile, whatever the kernel; the multiplications of the vector kernels in one; and the share of their time below which
/// the unit is chosen.
inline constexpr double kMatrixProductCycles = 40, kExponentialCycles = 18;
inline constexpr double kMatrixChannelCycles = 20, kVectorRate = 16, kMatrixShare = 0.85;
/// Pairs of 16 keys whose scores and weights are in the first-level cache at a time.
inline constexpr int kMatrixChunk = 16;

}  // namespace natten::cpu::tuning
