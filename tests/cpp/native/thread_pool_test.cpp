#include "native/cpu/thread_pool.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

// ThreadSanitizer by default ends a forked child that starts threads.
extern "C" const char* __tsan_default_options() {
  return "die_after_fork=0";
}

namespace natten::cpu {
namespace {

constexpr double kLarge = 1e12;  // flops that call for threads

class ThreadPool : public ::testing::Test {
 protected:
  void SetUp() override { set_thread_count(4); }
  void TearDown() override { set_thread_count(0); }
};

TEST_F(ThreadPool, RunsEveryItemOnce) {
  for (const std::int64_t items : {0, 1, 2, 5, 1000}) {
    std::vector<std::atomic<int>> runs(items);
    parallel_for(items, kLarge, [&](std::int64_t item) { ++runs[item]; });
    for (auto& count : runs) EXPECT_EQ(count, 1);
  }
}

TEST_F(ThreadPool, UsesItsThreads) {
  // Every item waits until all have started, so that each needs a thread of its own.
  std::atomic<int> started{0};
  parallel_for(4, kLarge, [&](std::int64_t) {
    ++started;
    while (started < 4) std::this_thread::yield();
  });
  EXPECT_EQ(started, 4);
}

TEST_F(ThreadPool, SmallWorkStaysOnTheCallingThread) {
  set_thread_count(0);
  const auto caller = std::this_thread::get_id();
  parallel_for(100, 10, [&](std::int64_t) { EXPECT_EQ(std::this_thread::get_id(), caller); });
}

TEST_F(ThreadPool, IsReentrant) {
  std::atomic<int> runs{0};
  parallel_for(8, kLarge, [&](std::int64_t) { parallel_for(16, kLarge, [&](std::int64_t) { ++runs; }); });
  EXPECT_EQ(runs, 128);
}

TEST_F(ThreadPool, ServesSeveralCallersAtOnce) {
  std::vector<std::thread> callers;
  std::atomic<int> runs{0};
  for (int i = 0; i < 6; ++i) {
    callers.emplace_back([&] {
      for (int round = 0; round < 50; ++round) parallel_for(20, kLarge, [&](std::int64_t) { ++runs; });
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(runs, 6 * 50 * 20);
}

TEST_F(ThreadPool, RethrowsAnExceptionAndGoesOn) {
  for (int round = 0; round < 20; ++round) {
    EXPECT_THROW(parallel_for(100, kLarge,
                              [&](std::int64_t item) {
                                if (item == 30) throw std::runtime_error("item 30");
                              }),
                 std::runtime_error);
  }
  std::atomic<int> runs{0};
  parallel_for(100, kLarge, [&](std::int64_t) { ++runs; });
  EXPECT_EQ(runs, 100);
}

TEST_F(ThreadPool, WorksInAForkedChild) {
  const auto use_every_thread = [] {
    std::atomic<int> started{0};
    parallel_for(4, kLarge, [&](std::int64_t) {
      ++started;
      while (started < 4) std::this_thread::yield();
    });
    return started == 4;
  };
  // A thread that is still being started holds a lock of the address sanitizer's malloc, which a fork would leave
  // locked.
  EXPECT_TRUE(use_every_thread());
  const pid_t child = fork();
  if (child == 0) _exit(use_every_thread() ? 0 : 1);
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST(ThreadCount, CanBeOverridden) {
  set_thread_count(7);
  EXPECT_EQ(thread_count(), 7);
  set_thread_count(0);
  EXPECT_GE(thread_count(), 1);
}

}  // namespace
}  // namespace natten::cpu
