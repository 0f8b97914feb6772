// Runs one kernel launch on the CPU: every GPU thread is a fiber, one threadgroup at a time. Compiled once, without
// instrumentation, and linked to each kernel. The kernel itself is compiled with -fsanitize=thread, not for that
// sanitizer's sake but because both GCC and clang then call `__tsan_readN(address)` and `__tsan_writeN(address)` before
// every access to memory that is not provably private; the definitions below check and count those.
#include "runtime.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fiber.h"
#include "memory.h"

namespace metal_host {
namespace {

constexpr uint32_t kLanes = 32;
constexpr int kMaxBuffers = 64;
constexpr int kLaneBytes = 32;

enum class State : uint8_t { ready, at_barrier, at_simd, done };

struct Thread {
  Fiber fiber;
  State state;
  const void* site;  // in the kernel, where it waits
  int line;          // of the source; a helper function may hide the caller's
  bool orders_threadgroup, orders_device;
  uint32_t simd_operations;  // passed so far: its parity chooses the lane slots
  uint32_t votes;            // passed so far
  metal_host_thread_attributes attributes;
};

struct SimdGroup {
  uint64_t epoch, device_epoch;
  unsigned char slots[2][kLanes][kLaneBytes];
};

Thread threads[kMaxThreads];
SimdGroup simdgroups[kMaxThreads / kLanes];
Fiber scheduler;
ThreadgroupMemory shared_memory;
DeviceMemory buffers[kMaxBuffers];
uint64_t epoch, device_epoch;  // barriers passed that order threadgroup and device memory
uint32_t group_serial;
uint32_t live;  // threads in the running group
bool votes[3];  // of the last vote, this one and the next: who runs ahead to that is stopped there
struct Mbarrier {
  uint32_t address, arrivals, pending, phase;
};
struct NamedBarrier {
  uint32_t arrived, passed;
};
constexpr uint32_t kMaxMbarriers = 64, kNamedBarriers = 16;
Mbarrier mbarriers[kMaxMbarriers];
uint32_t mbarrier_count;
NamedBarrier named_barriers[kNamedBarriers];
char* dynamic_memory;
uint64_t turns_given;  // since something happened at these barriers
Thread* self;
Launch* launch;
uint64_t random_state;

void report(const char* format, ...) {
  if (launch->error[0] != 0) return;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(launch->error, sizeof(launch->error), format, arguments);
  va_end(arguments);
}

/// Reports a fault of the running thread and leaves it for good.
[[noreturn]] void stop(const char* what) {
  const auto& at = self->attributes;
  report("%s; thread (%u, %u, %u) of threadgroup (%u, %u, %u)", what, at.thread_position_in_threadgroup[0],
         at.thread_position_in_threadgroup[1], at.thread_position_in_threadgroup[2], at.threadgroup_position_in_grid[0],
         at.threadgroup_position_in_grid[1], at.threadgroup_position_in_grid[2]);
  Fiber::resume(self->fiber, scheduler);
  abort();  // the scheduler never resumes a group that has failed
}

void wait(State state, const void* site, int line, bool orders_threadgroup, bool orders_device) {
  self->state = state;
  self->site = site;
  self->line = line;
  self->orders_threadgroup = orders_threadgroup;
  self->orders_device = orders_device;
  Fiber::resume(self->fiber, scheduler);
}

Mbarrier& mbarrier_at(uint32_t address) {
  for (uint32_t i = 0; i < mbarrier_count; ++i) {
    if (mbarriers[i].address == address) return mbarriers[i];
  }
  stop("a barrier in shared memory that was not started");
}
void give_way() {
  constexpr uint64_t kMostTurns = 3000000;
  if (++turns_given > kMostTurns) stop("waits at a barrier for what does not come");
  Fiber::resume(self->fiber, scheduler);
}

void thread_main() {
  for (;;) {
    metal_host_run_thread();
    self->state = State::done;
    Fiber::resume(self->fiber, scheduler);
  }
}

// --- Memory accesses ---

[[noreturn]] void fault(Fault fault, const char* where, int64_t offset, int64_t bytes, bool is_write) {
  char text[512];
  snprintf(text, sizeof(text), "%s of %lld bytes at byte %lld of %s, which %s", is_write ? "write" : "read",
           static_cast<long long>(bytes), static_cast<long long>(offset), where, fault);
  stop(text);
}

[[noreturn]] void out_of_bounds(uintptr_t address, int64_t bytes, bool is_write) {
  const DeviceMemory* nearest = nullptr;
  for (int i = 0; i < launch->buffer_count; ++i) {
    if (nearest == nullptr || llabs(buffers[i].distance(address)) < llabs(nearest->distance(address))) {
      nearest = &buffers[i];
    }
  }
  char text[512];
  snprintf(text, sizeof(text), "out-of-bounds %s of %lld bytes at byte %lld of %s, which has %lld",
           is_write ? "write" : "read", static_cast<long long>(bytes),
           nearest ? static_cast<long long>(nearest->distance(address)) : 0,
           nearest ? nearest->buffer().name : "nothing", nearest ? static_cast<long long>(nearest->buffer().bytes) : 0);
  stop(text);
}

/// `alignment`: what the compiler took for granted.
inline void access(const void* pointer, int64_t bytes, bool is_write, uintptr_t alignment = 1) {
  if (self == nullptr) return;  // a static initialiser
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (address - self->fiber.stack() < kStackBytes) return;
  if (address % alignment != 0) stop(is_write ? "misaligned write of a vector" : "misaligned read of a vector");
  const auto& at = self->attributes;
  const SimdGroup& simdgroup = simdgroups[at.simdgroup_index_in_threadgroup];
  const uint32_t thread = at.thread_index_in_threadgroup;
  if (shared_memory.holds(address)) {
    const Accessor by{thread, group_serial, at.simdgroup_index_in_threadgroup, epoch, simdgroup.epoch};
    if (Fault wrong = shared_memory.access(address, bytes, is_write, by)) {
      fault(wrong, "threadgroup memory", shared_memory.distance(address), bytes, is_write);
    }
    return;
  }
  const Accessor by{thread, group_serial, at.simdgroup_index_in_threadgroup, device_epoch, simdgroup.device_epoch};
  for (int i = 0; i < launch->buffer_count; ++i) {
    if (!buffers[i].holds(address, bytes)) continue;
    if (Fault wrong = buffers[i].access(address, bytes, is_write, by)) {
      fault(wrong, buffers[i].buffer().name, buffers[i].distance(address), bytes, is_write);
    }
    return;
  }
  out_of_bounds(address, bytes, is_write);
}

// --- Scheduling ---

uint32_t random_below(uint32_t bound) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return static_cast<uint32_t>((random_state >> 20) % bound);
}

void arrange(uint32_t* order, uint32_t count) {
  for (uint32_t i = 0; i < count; ++i) order[i] = i;
  if (launch->order == 0) return;
  for (uint32_t i = count; i > 1; --i) {
    const uint32_t j = random_below(i);
    const uint32_t swapped = order[i - 1];
    order[i - 1] = order[j];
    order[j] = swapped;
  }
}

/// Lets threads [begin, end) pass if all of them wait in `state` at one place. False if they wait at different ones.
bool release(uint32_t begin, uint32_t end, State state, bool& released) {
  for (uint32_t i = begin; i < end; ++i) {
    if (threads[i].state != state) return true;
    if (threads[i].site != threads[begin].site) return false;
  }
  for (uint32_t i = begin; i < end; ++i) threads[i].state = State::ready;
  released = true;
  return true;
}

void report_deadlock() {
  int counts[4] = {};
  int example[4] = {-1, -1, -1, -1};
  int lines[2] = {0, 0};
  for (uint32_t i = 0; i < live; ++i) {
    const int state = static_cast<int>(threads[i].state);
    if (counts[state]++ == 0) example[state] = static_cast<int>(i);
    if (threads[i].state == State::done) continue;
    lines[lines[0] != 0 && lines[0] != threads[i].line] = threads[i].line;
  }
  const auto& at = threads[0].attributes.threadgroup_position_in_grid;
  report(
      "divergent %s: in threadgroup (%u, %u, %u) of %u threads %d wait at a threadgroup barrier (first: thread %d), "
      "%d at a simd-group operation (first: thread %d), %d have returned (first: thread %d); source lines %d, %d",
      counts[1] != 0 ? "barrier" : "simd-group operation", at[0], at[1], at[2], live, counts[1], example[1], counts[2],
      example[2], counts[3], example[3], lines[0], lines[1]);
}

bool run_group() {
  uint32_t order[kMaxThreads];
  for (;;) {
    bool ran = false;
    arrange(order, live);
    for (uint32_t i = 0; i < live; ++i) {
      Thread& thread = threads[order[i]];
      if (thread.state != State::ready) continue;
      self = &thread;
      Fiber::resume(scheduler, thread.fiber);
      self = nullptr;
      if (launch->error[0] != 0) return false;
      ran = true;
    }
    bool released = false;
    bool aligned = true;
    for (uint32_t begin = 0; begin < live; begin += kLanes) {
      const uint32_t end = begin + kLanes < live ? begin + kLanes : live;
      bool passed = false;
      aligned = release(begin, end, State::at_simd, passed) && aligned;
      if (!passed) continue;
      released = true;
      simdgroups[begin / kLanes].epoch += threads[begin].orders_threadgroup;
      simdgroups[begin / kLanes].device_epoch += threads[begin].orders_device;
    }
    bool passed = false;
    aligned = release(0, live, State::at_barrier, passed) && aligned;
    if (passed) {
      released = true;
      epoch += threads[0].orders_threadgroup;
      device_epoch += threads[0].orders_device;
      ++launch->barriers;
    }
    if (released && aligned) continue;
    bool all_done = aligned;
    for (uint32_t i = 0; i < live; ++i) all_done = all_done && threads[i].state == State::done;
    if (all_done) return true;
    if (!ran || !aligned) {
      report_deadlock();
      return false;
    }
  }
}

uint32_t smaller(uint32_t a, uint32_t b) {
  return a < b ? a : b;
}

void set_attributes(Size3 group, Size3 groups, Size3 size) {
  const Size3 full = launch->threadgroup;
  const uint32_t simd_count = (live + kLanes - 1) / kLanes;
  for (uint32_t i = 0; i < live; ++i) {
    const Size3 place{i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    Thread& thread = threads[i];
    thread.state = State::ready;
    thread.simd_operations = thread.votes = 0;
    thread.attributes = {
        {full.x, full.y, full.z},
        {launch->grid.x, launch->grid.y, launch->grid.z},
        {group.x * full.x + place.x, group.y * full.y + place.y, group.z * full.z + place.z},
        {place.x, place.y, place.z},
        {group.x, group.y, group.z},
        {groups.x, groups.y, groups.z},
        {launch->grid.x, launch->grid.y, launch->grid.z},
        {size.x, size.y, size.z},
        (full.x * full.y * full.z + kLanes - 1) / kLanes,
        i / kLanes,
        simd_count,
        kLanes,
        i % kLanes,
        i,
        kLanes,
    };
  }
}

void run_groups() {
  const Size3 full = launch->threadgroup;
  const Size3 grid = launch->grid;
  const Size3 groups{(grid.x + full.x - 1) / full.x, (grid.y + full.y - 1) / full.y, (grid.z + full.z - 1) / full.z};
  const uint32_t count = groups.x * groups.y * groups.z;
  auto* order = static_cast<uint32_t*>(malloc(sizeof(uint32_t) * (count + 1)));
  arrange(order, count);
  for (uint32_t i = 0; i < full.x * full.y * full.z; ++i)
    threads[i].fiber.reset(launch->stacks + i * kStackPitch, thread_main);
  for (uint32_t i = 0; i < count; ++i) {
    const Size3 group{order[i] % groups.x, order[i] / groups.x % groups.y, order[i] / (groups.x * groups.y)};
    const Size3 size{smaller(full.x, grid.x - group.x * full.x), smaller(full.y, grid.y - group.y * full.y),
                     smaller(full.z, grid.z - group.z * full.z)};
    live = size.x * size.y * size.z;
    set_attributes(group, groups, size);
    ++group_serial;
    ++epoch;
    ++device_epoch;
    shared_memory.poison();
    votes[0] = votes[1] = votes[2] = false;
    mbarrier_count = 0;
    memset(static_cast<void*>(named_barriers), 0, sizeof(named_barriers));
    turns_given = 0;
    if (!run_group()) break;
  }
  free(order);
}

bool valid() {
  const Size3 full = launch->threadgroup;
  if (full.x * full.y * full.z > uint32_t(kMaxThreads)) report("a threadgroup has more than %d threads", kMaxThreads);
  if (full.x * full.y * full.z == 0) report("a threadgroup has no threads");
  if (launch->buffer_count > 31) report("more than 31 buffers, Metal's limit");
  return launch->error[0] == 0;
}

}  // namespace
}  // namespace metal_host

extern "C" {

using namespace metal_host;

__attribute__((visibility("default"))) void metal_host_launch(Launch* arguments) {
  launch = arguments;
  launch->error[0] = 0;
  launch->barriers = 0;
  // MLX shortens the threadgroup to the grid.
  launch->threadgroup = {smaller(launch->threadgroup.x, launch->grid.x), smaller(launch->threadgroup.y, launch->grid.y),
                         smaller(launch->threadgroup.z, launch->grid.z)};
  random_state = launch->order * 0x9e3779b97f4a7c15ull | 1;
  group_serial = 0;
  if (!valid()) return;
  memset(static_cast<void*>(simdgroups), 0, sizeof(simdgroups));
  if (!shared_memory.allocate(launch->threadgroup_limit)) report("the emulator ran out of memory");
  for (int i = 0; i < launch->buffer_count; ++i) {
    if (!buffers[i].allocate(&launch->buffers[i])) report("the emulator ran out of memory");
  }
  if (launch->error[0] == 0) run_groups();
  for (int i = 0; i < launch->buffer_count; ++i) {
    const int64_t unwritten = buffers[i].first_unwritten();
    if (unwritten >= 0) {
      report("byte %lld of output %s was never written", static_cast<long long>(unwritten), buffers[i].buffer().name);
    }
    buffers[i].release();
  }
  launch->threadgroup_bytes = static_cast<int32_t>(shared_memory.declared());
  launch->threadgroup_loaded = shared_memory.loaded_from_first();
  shared_memory.release();
}

const metal_host_thread_attributes* metal_host_thread() {
  return &self->attributes;
}

void* metal_host_argument(int index) {
  const Buffer& buffer = launch->buffers[index];
  return static_cast<char*>(buffer.data) + buffer.origin;
}

void metal_host_barrier(int line, bool orders_threadgroup, bool orders_device) {
  wait(State::at_barrier, __builtin_return_address(0), line, orders_threadgroup, orders_device);
}

bool metal_host_any(int line, bool value) {
  const uint32_t turn = self->votes++ % 3;
  votes[turn] = votes[turn] || value;
  wait(State::at_barrier, __builtin_return_address(0), line, true, true);
  votes[(turn + 2) % 3] = false;
  return votes[turn];
}

void metal_host_simd_barrier(int line, bool orders_threadgroup, bool orders_device) {
  wait(State::at_simd, __builtin_return_address(0), line, orders_threadgroup, orders_device);
}

void metal_host_simd_publish(int line, const void* value, int size) {
  const auto& at = self->attributes;
  // Two sets of slots take turns: a lane that runs ahead to the next operation can't overwrite what others still read,
  // and it can't get to the one after that before they have.
  const uint32_t turn = ++self->simd_operations & 1;
  unsigned char* slot = simdgroups[at.simdgroup_index_in_threadgroup].slots[turn][at.thread_index_in_simdgroup];
  memcpy(slot, value, size);
  wait(State::at_simd, __builtin_return_address(0), line, false, false);
}

void metal_host_simd_read(uint32_t lane, void* value, int size) {
  const auto& at = self->attributes;
  const uint32_t first = at.simdgroup_index_in_threadgroup * kLanes;
  if (lane < kLanes && first + lane < live) {
    memcpy(value, simdgroups[at.simdgroup_index_in_threadgroup].slots[self->simd_operations & 1][lane], size);
  } else {
    memset(value, 0xff, size);  // undefined in Metal: make it show
  }
}

void metal_host_start_mbarrier(uint32_t barrier, uint32_t arrivals) {
  if (barrier % 8 != 0) stop("misaligned barrier");
  if (mbarrier_count == kMaxMbarriers) stop("too many barriers in shared memory");
  mbarriers[mbarrier_count++] = {barrier, arrivals, arrivals, 0};
}

void metal_host_arrive(uint32_t barrier) {
  Mbarrier& at = mbarrier_at(barrier);
  turns_given = 0;
  if (--at.pending != 0) return;
  at.pending = at.arrivals;
  at.phase ^= 1;
}

void metal_host_wait(uint32_t barrier, uint32_t phase) {
  while (mbarrier_at(barrier).phase == phase) give_way();
  ++epoch;  // of all threads, which is more than this orders
}

void metal_host_named_barrier(int number, uint32_t threads, bool waits) {
  NamedBarrier& at = named_barriers[number % kNamedBarriers];
  const uint32_t passed = at.passed;
  turns_given = 0;
  if (++at.arrived == threads) {
    at.arrived = 0;
    ++at.passed;
  }
  while (waits && at.passed == passed) give_way();
  ++epoch;
}

uint32_t metal_host_shared_address(const void* pointer) {
  constexpr uint32_t kFirst = 512;  // aligned by less than what kernels want
  if (dynamic_memory == nullptr) dynamic_memory = const_cast<char*>(static_cast<const char*>(pointer)) - kFirst;
  return static_cast<uint32_t>(static_cast<const char*>(pointer) - dynamic_memory);
}

void* metal_host_shared_pointer(uint32_t address) {
  return dynamic_memory + address;
}

void metal_host_stop(const char* what) {
  stop(what);
}

void* metal_host_shared(int id, int64_t bytes, int64_t alignment) {
  void* array = shared_memory.array(id, bytes, alignment);
  if (array == nullptr) {
    char text[100];
    snprintf(text, sizeof(text), "more than %lld bytes of threadgroup memory, which is what the platform has",
             static_cast<long long>(launch->threadgroup_limit));
    stop(text);
  }
  return array;
}

#define METAL_HOST_HOOK(n)                        \
  void __tsan_read##n(void* address) {            \
    access(address, n, false, n);                 \
  }                                               \
  void __tsan_write##n(void* address) {           \
    access(address, n, true, n);                  \
  }                                               \
  void __tsan_unaligned_read##n(void* address) {  \
    access(address, n, false);                    \
  }                                               \
  void __tsan_unaligned_write##n(void* address) { \
    access(address, n, true);                     \
  }
METAL_HOST_HOOK(1)
METAL_HOST_HOOK(2)
METAL_HOST_HOOK(4)
METAL_HOST_HOOK(8)
METAL_HOST_HOOK(16)
void __tsan_read_range(void* address, uint64_t size) {
  access(address, size, false);
}
void __tsan_write_range(void* address, uint64_t size) {
  access(address, size, true);
}
void* __tsan_memcpy(void* to, const void* from, uint64_t size) {
  access(from, size, false);
  access(to, size, true);
  return memcpy(to, from, size);
}
void* __tsan_memmove(void* to, const void* from, uint64_t size) {
  access(from, size, false);
  access(to, size, true);
  return memmove(to, from, size);
}
void* __tsan_memset(void* to, int value, uint64_t size) {
  access(to, size, true);
  return memset(to, value, size);
}

/// What -fsanitize=bounds calls for an index beyond an array's bound; `data` starts with the place in the source.
struct BoundsData {
  const char* file;
  uint32_t line, column;
};
[[noreturn]] void __ubsan_handle_out_of_bounds_abort(BoundsData* data, uint64_t index) {
  char text[128];
  snprintf(text, sizeof(text), "index %lld out of bounds of an array at source line %u", static_cast<long long>(index),
           data->line);
  stop(text);
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
