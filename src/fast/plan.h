// How a kernel cuts its work: the one table of tile sizes, with reasons, and its override for tuning.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "fast/kernels.h"
#include "fast/lru_cache.h"
#include "fast/spans.h"

namespace natten::fast {

/// One of the two arrays whose positions stream past: A enters the dot products of query with key (or is the only
/// one), B those of dout with value.
struct Stream {
  int channels = 0;
  ElementType type = ElementType::float32;
  int slices = 0;  ///< channel vectors per lane
  int pitch = 0;   ///< elements from row to row of threadgroup memory
  int width = 0;   ///< matrix units: channels with zeros up to the multiple that they take
  int row_bytes() const { return pitch * element_size(type); }
};

/// How a kernel on matrix units tells pairs that do not meet. A warpgroup's: there are none; by a product; by
/// comparison on the one axis. Another's: by bits of the tile's coordinates; by packed coordinates (bodies/matrix.h).
enum class MaskKind : std::uint8_t { none, units, row, bits, coordinates };

struct Plan {
  std::array<int, 3> extent{1, 1, 1};  ///< positions of a tile
  int run = 1;                         ///< neighbouring positions on `run_axis` that a thread holds
  int run_axis = 2;
  int lanes = 1;          ///< threads that share the channels of a position
  int slots = 1;          ///< decode: threads, times lanes, that divide what a position meets
  int vector = 4;         ///< channels per access
  int batch = 1;          ///< positions of axis 2 taken at once
  int chunk = 1;          ///< positions in threadgroup memory
  int stage_columns = 0;  ///< of the logit gradients that are summed into the gradient of rpb, a row for each query
  int threads = 32;
  int groups = 1;          ///< CUDA: threadgroups that shall fit on a multiprocessor, which bounds registers
  int position_bytes = 0;  ///< of threadgroup memory for each streamed position
  Engine engine = Engine::simt;
  int block = 1;              ///< matrix units: streamed positions at once, of which `chunk` is a multiple
  int words = 0;              ///< matrix units, of a streamed position: what it meets, where the bias of its pairs is
  int staged_bias = 0;        ///< matrix units: entries of bias tables in threadgroup memory
  int wide = 0;               ///< matrix units: held rows are read anew for each product, gradients summed one by one
  std::array<int, 3> bits{};  ///< matrix units: per axis, of a word that says what a streamed position meets
  // Hopper's warpgroup instructions (bodies/warpgroup_*.h); `extent` is that of all warpgroups together.
  int warpgroups = 0;  ///< that hold a box of 64 positions each
  std::array<int, 3> warpgroup_extent{};
  int split_axis = 2;   ///< on which they lie side by side
  int producers = 0;    ///< threads that bring the region in
  int stages = 0;       ///< of the ring in shared memory
  int repeat = 1;       ///< tiles that a threadgroup does one after the other, at most
  int ping_pong = 0;    ///< whether two warpgroups take turns at the matrix units
  int hold_shared = 0;  ///< arrays whose held rows are in shared memory, not in registers
  int numbers = 0;      ///< of a streamed position: bytes
  int bias_margin = 0;  ///< zeros before and after a bias table
  MaskKind mask = MaskKind::none;
  std::array<int, 3> mask_channels{};                  ///< of each axis, where the mask is a product
  std::array<int, 3> reach{};                          ///< positions that a tile meets, at most
  int producer_registers = 0, consumer_registers = 0;  ///< 0: as launched
  Stream a, b;

  // The text does not know of these: they depend on what a launch may change.
  std::array<std::int64_t, 3> tiles{};  ///< per axis, over all dilation groups
  std::int64_t parts = 0;               ///< threadgroups per head; some take several tiles

  int positions() const { return extent[0] * extent[1] * extent[2]; }  ///< of a tile
  std::int64_t tile_count() const { return tiles[0] * tiles[1] * tiles[2]; }
  std::array<int, 2> products(const KernelRow& kernel) const;  ///< of a pair: with rows of A, and of B
  int bias_bytes() const;                  ///< of threadgroup memory: tables, and what sums their gradient
  int shared_bytes() const;                ///< declared
  int dynamic_bytes() const;               ///< asked for with the launch
  std::array<int, 3> simd_extent() const;  ///< of the tile that a simdgroup holds, as tile_of() deals positions out
  std::string describe() const;
};

/// Environment: NATTEN_FAST_TILE="threads=128,run=2,batch=7,chunk=64,lanes=4,extent=1x8x16" replaces any of them;
/// "matrix=0" does without matrix units, "decode=0" without the engine of few queries, "warpgroup=0" without warpgroup
/// instructions, and "warpgroup=1" takes them wherever they can be taken. Plans are remembered, up to a limit.
Plan plan(const Problem& problem, KernelId kernel, Target target);

/// Threadgroup memory that a kernel may declare.
int most_shared_bytes(Platform platform);

/// What the text of a problem's kernels depends on, in place of the problem: batch, number of heads and scale are not
/// in it, and of lengths, or of the rows of spans, only what tiles are chosen by.
Problem family_of(Problem problem);
/// Bytes that are the same for kernels of the same text.
std::string family_key(const Problem& family, KernelId kernel, Target target);

LruCache<Plan>& plan_cache();

/// What the host and the kernels derive from stride and dilation (bodies/groups.h).
AxisConstants axis_constants(const Axis& axis);

inline int element_size(FloatType type) {
  return type == FloatType::float32 ? 4 : type == FloatType::float64 ? 8 : 2;
}

}  // namespace natten::fast
