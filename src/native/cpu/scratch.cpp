#include "native/cpu/scratch.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <limits>
#include <new>
#include <utility>

namespace natten::cpu {
namespace {

// Blocks up to this size stay with the thread; larger ones go back to the system.
constexpr std::size_t kLargestKept = std::size_t{16} << 20;

struct Kept {
  std::byte* block = nullptr;
  std::size_t size = 0;
  ~Kept() { std::free(block); }
};
thread_local Kept kept;

std::atomic<std::size_t> largest{0};
std::atomic<std::size_t> limit{std::numeric_limits<std::size_t>::max()};

}  // namespace

void set_scratch_limit(std::size_t bytes) {
  limit.store(bytes, std::memory_order_relaxed);
}

std::size_t take_largest_scratch() {
  return largest.exchange(0, std::memory_order_relaxed);
}

Scratch::Scratch(std::size_t bytes) : block_(std::exchange(kept.block, nullptr)), size_(std::exchange(kept.size, 0)) {
  std::size_t so_far = largest.load(std::memory_order_relaxed);
  while (so_far < bytes && !largest.compare_exchange_weak(so_far, bytes, std::memory_order_relaxed)) {
  }
  const bool is_allowed = bytes <= limit.load(std::memory_order_relaxed);
  if (size_ < bytes || block_ == nullptr || !is_allowed) {
    std::free(std::exchange(block_, nullptr));
    size_ = (std::max(bytes, std::size_t{1}) + kAlignment - 1) / kAlignment * kAlignment;
    if (size_ < bytes || !is_allowed) throw std::bad_alloc();
    block_ = static_cast<std::byte*>(std::aligned_alloc(kAlignment, size_));
    if (block_ == nullptr) throw std::bad_alloc();
  }
  next_ = reinterpret_cast<std::uintptr_t>(block_);
}

Scratch::~Scratch() {
  if (kept.block == nullptr && size_ <= kLargestKept) {
    kept.block = block_;
    kept.size = size_;
  } else {
    std::free(block_);
  }
}

}  // namespace natten::cpu
