// Temporary memory of a task, kept by its thread from one task to the next.
#pragma once

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
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  /// Bytes that take<T>(count) uses up.
  template <class T>
  static std::size_t bytes(std::int64_t count) {
    return (static_cast<std::size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
  }

  /// The next `count` elements, uninitialised. The sum of all takes must not exceed the constructor's bytes.
  template <class T>
  T* take(std::int64_t count) {
    T* result = reinterpret_cast<T*>(next_);
    next_ += bytes<T>(count);
    return result;
  }

  /// Memory taken after position() was p is free again after rewind(p).
  std::byte* position() const { return next_; }
  void rewind(std::byte* position) { next_ = position; }

 private:
  std::byte* block_;
  std::byte* next_;
  std::size_t size_;
};

/// Bytes of the largest block that a thread has needed since the last call of this function. For tests.
std::size_t take_largest_scratch();

}  // namespace natten::cpu
