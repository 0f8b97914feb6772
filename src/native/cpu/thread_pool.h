// A static pool of worker threads, started by the first call that is large enough to need one.
#pragma once

#include <cstdint>

namespace natten::cpu {

/// Threads that a parallel_for uses, the caller included: NATTEN_NUM_THREADS, otherwise the CPUs of the affinity mask,
/// or as many as make use of the CPU time that the control groups allow, where that is less.
int thread_count();

/// Overrides thread_count() for the process, and uses threads for small loops too; 0 returns to the default. For tests
/// and benchmarks.
void set_thread_count(int count);

using IndexedTask = void (*)(void* context, std::int64_t item);
void run_parallel(std::int64_t items, double flops, IndexedTask task, void* context);

/// Calls task(item) for every item in [0, items) and returns when all are done. `flops` is the whole loop's work: below
/// a threshold the loop is serial. How work is cut into items must depend on the problem only, never on the number of
/// threads. Callable from any thread, from inside a task (which then runs serially), and in a forked child. The first
/// exception of a task is rethrown here, after the running tasks ended; items not yet started are dropped.
template <class Task>
void parallel_for(std::int64_t items, double flops, Task&& task) {
  run_parallel(
      items, flops, [](void* context, std::int64_t item) { (*static_cast<Task*>(context))(item); },
      const_cast<void*>(static_cast<const void*>(&task)));
}

}  // namespace natten::cpu
