// The C interface between the emulator (which compiles and loads) and a compiled kernel (which runs). Plain data only.
#pragma once

#include <stdint.h>

namespace metal_host {

struct Size3 {
  uint32_t x, y, z;
};

/// One device buffer. The caller sets the first half, the run fills in the second.
struct Buffer {
  const char* name;
  void* data;
  int64_t bytes;
  int64_t origin;    ///< byte that the kernel's pointer points to: not 0 when a stride is negative
  bool is_output;    ///< writable; every byte must be written, and none read before
  bool is_metadata;  ///< `<input>_shape`, `<input>_strides`, `<input>_ndim`

  int64_t loaded;       ///< bytes of all loads of all threads
  int64_t loaded_once;  ///< the same, counting a byte once for each threadgroup that loads it
  int64_t stored;       ///< bytes of all stores
};

inline constexpr int64_t kStackBytes = 128 * 1024;  // of one thread
inline constexpr int64_t kStackPitch = 192 * 1024;  // from stack to stack; what lies between is a guard
inline constexpr int32_t kMaxThreads = 1024;        // of a threadgroup

struct Launch {
  char* stacks;     ///< one for each thread of a full group
  Buffer* buffers;  ///< in the order of the kernel's parameters
  int32_t buffer_count;
  Size3 grid;                 ///< threads, not groups: Metal cuts the last group short
  Size3 threadgroup;          ///< of a full group
  int64_t threadgroup_limit;  ///< bytes of threadgroup memory that a group may declare
  uint64_t order;             ///< 0: threads and groups run in ascending order; otherwise the seed of a shuffled order

  int64_t barriers;            ///< threadgroup barriers passed, over all groups
  int64_t threadgroup_loaded;  ///< bytes of all loads from the threadgroup array that is declared first
  int32_t threadgroup_bytes;   ///< statically declared threadgroup memory
  char error[1024];            ///< empty when the kernel ran cleanly
};

}  // namespace metal_host

/// Exported by every compiled kernel.
extern "C" void metal_host_launch(metal_host::Launch* launch);
