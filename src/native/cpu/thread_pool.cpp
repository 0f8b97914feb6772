#include "native/cpu/thread_pool.h"

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <list>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

#include "native/cpu/control_group.h"
#include "native/cpu/tuning.h"

namespace natten::cpu {
namespace {

constexpr int kMaxThreads = 1024;

int available_cpus() {
  int count = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof(mask), &mask) == 0) count = CPU_COUNT(&mask);
  const double quota = cpu_quota().value_or(count);
  if (quota < count) count = static_cast<int>(std::ceil(quota));
#endif
  return std::max(1, count);
}

int default_thread_count() {
  const char* text = std::getenv("NATTEN_NUM_THREADS");
  if (text == nullptr || *text == '\0') return available_cpus();
  char* end = nullptr;
  const long count = std::strtol(text, &end, 10);
  if (*end != '\0' || count < 1 || count > kMaxThreads) {
    throw std::invalid_argument("NATTEN_NUM_THREADS must be an integer from 1 to " + std::to_string(kMaxThreads) +
                                ", got '" + text + "'");
  }
  return static_cast<int>(count);
}

std::atomic<int> thread_count_override{0};
thread_local bool inside_task = false;

// One call of run_parallel, on its caller's stack.
struct Job {
  std::int64_t items;
  IndexedTask task;
  void* context;
  int helpers_wanted;  // guarded by Pool::mutex, like the next two
  int helpers_active = 0;
  std::exception_ptr error;
  std::atomic<std::int64_t> next{0};

  void work(std::mutex& mutex) {
    inside_task = true;
    for (std::int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) {
      try {
        task(context, item);
      } catch (...) {
        next.store(items, std::memory_order_relaxed);
        std::lock_guard lock(mutex);
        if (!error) error = std::current_exception();
      }
    }
    inside_task = false;
  }
};

class Pool {
 public:
  void run(Job& job) {
    const int helpers = job.helpers_wanted;
    {
      std::lock_guard lock(mutex_);
      start_workers(helpers);
      jobs_.push_back(&job);
    }
    if (helpers == 1) {
      work_available_.notify_one();
    } else {
      work_available_.notify_all();
    }
    job.work(mutex_);
    std::unique_lock lock(mutex_);
    jobs_.remove(&job);
    helper_left_.wait(lock, [&] { return job.helpers_active == 0; });
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  void start_workers(int wanted) {
    try {
      for (; workers_ < wanted; ++workers_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
      // The caller works through its job with the threads that there are.
    }
  }

  Job* next_job() {
    for (Job* job : jobs_) {
      if (job->helpers_wanted > 0) return job;
    }
    return nullptr;
  }

  [[noreturn]] void serve() {
    std::unique_lock lock(mutex_);
    for (;;) {
      Job* job = nullptr;
      work_available_.wait(lock, [&] { return (job = next_job()) != nullptr; });
      --job->helpers_wanted;
      ++job->helpers_active;
      lock.unlock();
      job->work(mutex_);
      lock.lock();
      if (--job->helpers_active == 0) helper_left_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable work_available_;
  std::condition_variable helper_left_;
  std::list<Job*> jobs_;
  int workers_ = 0;
};

// The pool outlives every static object (its threads never end), and a forked child, which has no workers, gets a new
// one. The mutex is held across a fork so that the child finds it in a known state.
std::mutex current_pool_mutex;
Pool* current_pool = nullptr;

Pool& pool() {
  [[maybe_unused]] static const int registered =
      pthread_atfork([] { current_pool_mutex.lock(); }, [] { current_pool_mutex.unlock(); },
                     [] {
                       current_pool = nullptr;
                       current_pool_mutex.unlock();
                     });
  std::lock_guard lock(current_pool_mutex);
  if (current_pool == nullptr) current_pool = new Pool;
  return *current_pool;
}

}  // namespace

int thread_count() {
  const int override_count = thread_count_override.load(std::memory_order_relaxed);
  if (override_count > 0) return override_count;
  static const int count = default_thread_count();
  return count;
}

void set_thread_count(int count) {
  thread_count_override.store(std::clamp(count, 0, kMaxThreads), std::memory_order_relaxed);
}

void run_parallel(std::int64_t items, double flops, IndexedTask task, void* context) {
  const bool is_small = flops < tuning::kSerialFlops && thread_count_override.load(std::memory_order_relaxed) == 0;
  const std::int64_t threads = inside_task || is_small ? 1 : std::min<std::int64_t>(thread_count(), items);
  if (threads <= 1) {
    for (std::int64_t item = 0; item < items; ++item) task(context, item);
    return;
  }
  Job job{items, task, context, static_cast<int>(threads - 1), 0, nullptr, {}};
  pool().run(job);
}

}  // namespace natten::cpu
