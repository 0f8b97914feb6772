// Memory whose misuse is seen: one end touches a page that cannot be accessed, the other sentinel bytes.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

namespace natten::cpu::testing {

class Guarded {
 public:
  /// `at_end`: the last byte is followed by the guard page; otherwise the first byte follows one.
  Guarded(std::size_t bytes, bool at_end) : bytes_(bytes) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t inner = (bytes + page - 1) / page * page + page;
    mapped_ = inner + 2 * page;
    base_ = static_cast<std::byte*>(mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + page, inner, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    inner_begin_ = base_ + page;
    inner_end_ = inner_begin_ + inner;
    data_ = at_end ? inner_end_ - bytes : inner_begin_;
    std::memset(inner_begin_, kSentinel, inner);
  }
  ~Guarded() { munmap(base_, mapped_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

  /// Whether all bytes outside the data still are what they were.
  bool is_intact() const {
    bool intact = true;
    for (const std::byte* b = inner_begin_; b < data_; ++b) intact &= *b == std::byte{kSentinel};
    for (const std::byte* b = data_ + bytes_; b < inner_end_; ++b) intact &= *b == std::byte{kSentinel};
    return intact;
  }

  static constexpr unsigned char kSentinel = 0xff;  ///< every float type reads it as NaN

 private:
  std::size_t bytes_, mapped_;
  std::byte *base_, *inner_begin_, *inner_end_, *data_;
};

/// Address space of which only the pages that are touched take memory.
class SparseMemory {
 public:
  explicit SparseMemory(std::size_t bytes) : bytes_(bytes) {
    void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<std::byte*>(base);
#if defined(MADV_NOHUGEPAGE)
    madvise(data_, bytes, MADV_NOHUGEPAGE);
#endif
  }
  ~SparseMemory() {
    munmap(data_, bytes_);
  }
  SparseMemory(const SparseMemory&) = delete;
  SparseMemory& operator=(const SparseMemory&) = delete;

  std::byte* data() const {
    return data_;
  }

 private:
  std::size_t bytes_;
  std::byte* data_;
};

}  // namespace natten::cpu::testing
