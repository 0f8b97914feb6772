// Temporary memory of a task, kept by its thread from one task to the next.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>

namespace natten::cpu {

/// A block of memory aligned to cache lines, from which arrays are taken one after the other. The thread's block is
/// reused, so that a task pays neither for malloc nor for page faults; nested scratch gets a block of its own.
class Scratch {
 public:
  static constexpr std::size_t kAlignment = 64;

  /// Throws std::bad_alloc.
  explicit Scratch(std::size_t bytes);
  /// As many bytes as take(Scratch&) takes, which is called for their number first: it may not touch its arrays.
  template <std::invocable<Scratch&> Take>
  explicit Scratch(const Take& take) : Scratch(bytes_of(take)) {
    take(*this);
  }
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  /// Bytes that take<T>(count) uses up.
  template <class T>
  static std::size_t bytes(std::int64_t count) {
    return (static_cast<std::size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
  }

  /// Bytes of all that take(Scratch&) takes.
  template <std::invocable<Scratch&> Take>
  static std::size_t bytes_of(const Take& take) {
    Scratch none;
    take(none);
    return none.next_;
  }

  /// The next `count` elements, uninitialised. The sum of all takes must not exceed the constructor's bytes.
  template <class T>
  T* take(std::int64_t count) {
    T* result = reinterpret_cast<T*>(next_);  // NOLINT(performance-no-int-to-ptr)
    next_ += bytes<T>(count);
    return result;
  }

  /// Memory taken after position() was p is free again after rewind(p).
  std::uintptr_t position() const { return next_; }
  void rewind(std::uintptr_t position) { next_ = position; }

 private:
  Scratch() = default;

  std::byte* block_ = nullptr;
  std::uintptr_t next_ = 0;
  std::size_t size_ = 0;
};

/// Bytes of the largest block that a thread has needed since the last call of this function. For tests.
std::size_t take_largest_scratch();
/// Blocks above it cannot be had. For tests.
void set_scratch_limit(std::size_t bytes);

}  // namespace natten::cpu
