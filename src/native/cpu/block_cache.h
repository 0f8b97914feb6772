// Blocks of memory that nobody uses at the moment, kept for the next that wants as much.
#pragma once

#include <cstddef>
#include <list>
#include <map>
#include <mutex>
#include <optional>

namespace natten::cpu {

/// Where the blocks come from and what they are is the caller's. Every function may be called from any thread.
class BlockCache {
 public:
  struct Block {
    void* memory;
    std::size_t bytes;
  };
  using Free = void (*)(void* memory);

  explicit BlockCache(Free free) : free_(free) {}
  BlockCache(const BlockCache&) = delete;
  BlockCache& operator=(const BlockCache&) = delete;

  /// A kept block of at least so many bytes and at most an eighth more; the smallest such, the last used of its size.
  std::optional<Block> take(std::size_t bytes);

  /// Keeps a block, and frees those that were not used for longest until at most `limit` bytes are kept.
  void put(Block block, std::size_t limit);

  void clear() { shrink(0); }
  std::size_t bytes() const;

  // Around a fork: the child must find the lock free and the lists whole.
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  using ByAge = std::list<Block>;  // the last used first
  void shrink(std::size_t limit);

  const Free free_;
  mutable std::mutex mutex_;
  ByAge by_age_;
  std::multimap<std::size_t, ByAge::iterator> by_size_;  // the last used of a size last
  std::size_t bytes_ = 0;
};

}  // namespace natten::cpu
