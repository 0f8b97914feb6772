#include "native/cpu/block_cache.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace natten::cpu {
namespace {

std::atomic<int> freed{0};
void count_and_free(void* memory) {
  ++freed;
  std::free(memory);
}

constexpr std::size_t kNoLimit = ~std::size_t{0};

class BlockCacheTest : public ::testing::Test {
 protected:
  void SetUp() override { freed = 0; }
  void TearDown() override { cache_.clear(); }
  void* put(std::size_t bytes, std::size_t limit = kNoLimit) {
    void* memory = std::malloc(bytes);
    cache_.put({memory, bytes}, limit);
    return memory;
  }
  BlockCache cache_{count_and_free};
};

TEST_F(BlockCacheTest, GivesTheSmallestThatFitsAndLittleMore) {
  put(1200);
  void* const fits = put(1000);
  put(900);
  EXPECT_EQ(cache_.bytes(), 3100u);
  const auto block = cache_.take(950);
  ASSERT_TRUE(block);
  EXPECT_EQ(block->memory, fits);
  EXPECT_EQ(block->bytes, 1000u);
  EXPECT_FALSE(cache_.take(950));  // 1200 would waste too much
  EXPECT_FALSE(cache_.take(1300));
  EXPECT_EQ(cache_.bytes(), 2100u);
  std::free(block->memory);
}

TEST_F(BlockCacheTest, GivesTheLastUsedOfASize) {
  put(1000);
  void* const last = put(1000);
  const auto block = cache_.take(1000);
  EXPECT_EQ(block->memory, last);
  std::free(block->memory);
}

TEST_F(BlockCacheTest, FreesTheOldestAboveTheLimit) {
  put(1000, 2500);
  put(1000, 2500);
  void* const newest = put(1000, 2500);
  EXPECT_EQ(freed, 1);
  EXPECT_EQ(cache_.bytes(), 2000u);
  EXPECT_EQ(cache_.take(1000)->memory, newest);
  std::free(newest);
  put(5000, 2500);  // larger than all that may be kept
  EXPECT_EQ(cache_.bytes(), 0u);
}

TEST_F(BlockCacheTest, ServesThreads) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      for (int i = 0; i < 2000; ++i) {
        const std::size_t bytes = 1000 + 100 * (i % 7);
        auto block = cache_.take(bytes);
        if (!block) block = BlockCache::Block{std::malloc(bytes), bytes};
        std::memset(block->memory, t, bytes);  // the thread sanitizer sees two owners of one block
        cache_.put(*block, 8000);
        if (i % 100 == 0) cache_.clear();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(cache_.bytes(), 8000u);
}

}  // namespace
}  // namespace natten::cpu
