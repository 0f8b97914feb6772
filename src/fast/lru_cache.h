// What was used last, up to a number of bytes. Keys are bytes that describe what a value was made from.
#pragma once

#include <cstddef>
#include <list>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

namespace natten::fast {

struct CacheUsage {
  std::size_t entries = 0;
  std::size_t bytes = 0;  ///< about
  std::size_t limit = 0;
};

template <class Value>
class LruCache {
 public:
  explicit LruCache(std::size_t limit) : limit_(limit) {}

  std::optional<Value> find(const std::string& key) {
    const std::lock_guard lock(mutex_);
    const auto found = index_.find(key);
    if (found == index_.end()) return std::nullopt;
    entries_.splice(entries_.begin(), entries_, found->second);
    return found->second->value;
  }

  /// Of two values made at the same time for one key the first stays.
  void insert(const std::string& key, Value value, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    if (index_.count(key) != 0) return;
    entries_.push_front({key, std::move(value), bytes + key.size() + kOverhead});
    index_.emplace(entries_.front().key, entries_.begin());
    bytes_ += entries_.front().bytes;
    while (bytes_ > limit_ && entries_.size() > 1) {
      bytes_ -= entries_.back().bytes;
      index_.erase(entries_.back().key);
      entries_.pop_back();
    }
  }

  void clear() {
    const std::lock_guard lock(mutex_);
    index_.clear();
    entries_.clear();
    bytes_ = 0;
  }

  CacheUsage usage() const {
    const std::lock_guard lock(mutex_);
    return {entries_.size(), bytes_, limit_};
  }

 private:
  static constexpr std::size_t kOverhead = 128;  // of list, map and strings

  struct Entry {
    std::string key;
    Value value;
    std::size_t bytes;
  };

  mutable std::mutex mutex_;
  std::list<Entry> entries_;  // the one used last in front
  std::unordered_map<std::string_view, typename std::list<Entry>::iterator> index_;
  std::size_t bytes_ = 0;
  const std::size_t limit_;
};

}  // namespace natten::fast
