// What the Metal shim (metal_stdlib.h, instrumented together with the kernel) asks of the runtime (runtime.cpp, not
// instrumented): who am I, wait here, give me shared memory.
#pragma once

#include "launch.h"

#ifndef __clang__
// Two threads that call the same barrier of the kernel must be seen to do so: the compiler must not copy such a call
// into the branches of a condition before it.
#pragma GCC optimize("no-thread-jumps")
#endif

extern "C" {

/// The attributes of the running thread, named as in the Metal Shading Language.
struct metal_host_thread_attributes {
  uint32_t dispatch_threads_per_threadgroup[3];
  uint32_t grid_size[3];
  uint32_t thread_position_in_grid[3];
  uint32_t thread_position_in_threadgroup[3];
  uint32_t threadgroup_position_in_grid[3];
  uint32_t threadgroups_per_grid[3];
  uint32_t threads_per_grid[3];
  uint32_t threads_per_threadgroup[3];
  uint32_t dispatch_simdgroups_per_threadgroup;
  uint32_t simdgroup_index_in_threadgroup;
  uint32_t simdgroups_per_threadgroup;
  uint32_t thread_execution_width;
  uint32_t thread_index_in_simdgroup;
  uint32_t thread_index_in_threadgroup;
  uint32_t threads_per_simdgroup;
};

const metal_host_thread_attributes* metal_host_thread();
void* metal_host_argument(int index);

/// Waits until every thread of the threadgroup is here, which is told by the source line (not by the call's address:
/// the compiler may duplicate calls). `orders_*`: the barrier makes writes to that memory visible.
void metal_host_barrier(int line, bool orders_threadgroup, bool orders_device);
void metal_host_simd_barrier(int line, bool orders_threadgroup, bool orders_device);

/// A barrier that orders all memory, and whether any thread of the group brought `true`.
bool metal_host_any(int line, bool value);

/// Every lane of the simd-group gives a value (at most 32 bytes); afterwards each may read those of the others.
void metal_host_simd_publish(int line, const void* value, int size);
void metal_host_simd_read(uint32_t lane, void* value, int size);

/// Hopper's barriers: in shared memory, told by their address, and by number. A thread that waits gives way to others;
/// what was written before is ordered before what follows.
void metal_host_start_mbarrier(uint32_t barrier, uint32_t arrivals);
void metal_host_arrive(uint32_t barrier);
void metal_host_wait(uint32_t barrier, uint32_t phase);
void metal_host_named_barrier(int number, uint32_t threads, bool waits);
/// Addresses of dynamic shared memory, as its instructions take them, from a first pointer on.
uint32_t metal_host_shared_address(const void* pointer);
void* metal_host_shared_pointer(uint32_t address);
[[noreturn]] void metal_host_stop(const char* what);

/// Memory of the threadgroup array number `id`, the same for all threads of a group, filled with NaN when a group
/// starts.
void* metal_host_shared(int id, int64_t bytes, int64_t alignment);

/// Defined with the kernel: runs one thread of it.
void metal_host_run_thread();
}
