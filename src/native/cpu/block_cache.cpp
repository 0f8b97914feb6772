#include "native/cpu/block_cache.h"

namespace natten::cpu {

std::optional<BlockCache::Block> BlockCache::take(std::size_t bytes) {
  std::lock_guard guard(mutex_);
  auto entry = by_size_.lower_bound(bytes);
  if (entry == by_size_.end() || entry->first - bytes > bytes / 8) return {};
  entry = std::prev(by_size_.upper_bound(entry->first));
  const Block block = *entry->second;
  by_age_.erase(entry->second);
  by_size_.erase(entry);
  bytes_ -= block.bytes;
  return block;
}

void BlockCache::put(Block block, std::size_t limit) {
  {
    std::lock_guard guard(mutex_);
    by_age_.push_front(block);
    by_size_.emplace(block.bytes, by_age_.begin());
    bytes_ += block.bytes;
  }
  shrink(limit);
}

std::size_t BlockCache::bytes() const {
  std::lock_guard guard(mutex_);
  return bytes_;
}

void BlockCache::shrink(std::size_t limit) {
  ByAge dropped;
  {
    std::lock_guard guard(mutex_);
    while (bytes_ > limit) {
      const auto oldest = std::prev(by_age_.end());
      auto entry = by_size_.find(oldest->bytes);
      while (entry->second != oldest) ++entry;
      by_size_.erase(entry);
      bytes_ -= oldest->bytes;
      dropped.splice(dropped.end(), by_age_, oldest);
    }
  }
  // Giving memory back to the system takes long: not under the lock.
  for (const Block& block : dropped) free_(block.memory);
}

}  // namespace natten::cpu
