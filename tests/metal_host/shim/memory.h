// What the emulator knows about every byte of memory that threads share: who wrote it last, who read it, and whether a
// barrier came since. From that it tells out-of-bounds accesses, uninitialised reads and races.
#pragma once

#include <stdint.h>
#include <string.h>

#include "launch.h"

namespace metal_host {

/// The running thread, as the memory rules need it. Epochs only ever grow, also from group to group.
struct Accessor {
  uint32_t thread;  ///< in its group
  uint32_t group;   ///< serial number, from 1
  uint32_t simdgroup;
  uint64_t epoch;       ///< counts the group's barriers that order this memory
  uint64_t simd_epoch;  ///< counts the simd-group's
};

/// Why an access is wrong; null when it is not.
using Fault = const char*;

class ByteHistory {
 public:
  Fault write(const Accessor& by) {
    if (write_group_ == by.group && unordered(by, writer_, write_epoch_, write_simd_epoch_)) {
      return "is also written by another thread, with no barrier between";
    }
    if (read_group_ == by.group && unordered(by, reader_, read_epoch_, read_simd_epoch_)) {
      return "is read by another thread, with no barrier before this write";
    }
    writer_ = Who{by.thread, by.simdgroup};
    write_group_ = by.group;
    write_epoch_ = by.epoch;
    write_simd_epoch_ = by.simd_epoch;
    return nullptr;
  }

  Fault read(const Accessor& by) {
    if (write_group_ != by.group) return "is read before any thread of the group wrote it";
    if (unordered(by, writer_, write_epoch_, write_simd_epoch_)) {
      return "is written by another thread, with no barrier before this read";
    }
    const Who me{by.thread, by.simdgroup};
    // Earlier reads by the same simdgroup are before whatever this one is before.
    const bool first = read_group_ != by.group || read_epoch_ != by.epoch ||
                       (reader_.simdgroup == me.simdgroup && read_simd_epoch_ != by.simd_epoch);
    if (first) {
      reader_ = me;
    } else {
      if (reader_.thread != me.thread) reader_.thread = kSeveral;
      if (reader_.simdgroup != me.simdgroup) reader_.simdgroup = kSeveral;
    }
    read_group_ = by.group;
    read_epoch_ = by.epoch;
    read_simd_epoch_ = by.simd_epoch;
    return nullptr;
  }

  bool written() const { return write_group_ != 0; }
  bool written_in(uint32_t group) const { return write_group_ == group; }

 private:
  static constexpr uint32_t kSeveral = ~0u;
  struct Who {
    uint32_t thread, simdgroup;
  };

  static bool unordered(const Accessor& by, Who who, uint64_t epoch, uint64_t simd_epoch) {
    if (epoch != by.epoch || who.thread == by.thread) return false;
    return who.simdgroup != by.simdgroup || simd_epoch == by.simd_epoch;
  }

  Who writer_{}, reader_{};
  uint32_t write_group_ = 0, read_group_ = 0;
  uint64_t write_epoch_ = 0, read_epoch_ = 0;
  uint64_t write_simd_epoch_ = 0, read_simd_epoch_ = 0;
};

/// Statically declared threadgroup memory. Arrays lie apart, so that running over the end of one is seen.
class ThreadgroupMemory {
 public:
  static constexpr int kMost = 227 * 1024;  // on any platform
  static constexpr int kMaxArrays = 64;
  static constexpr int64_t kGap = 256;
  static constexpr int64_t kArenaBytes = 2 * kMost + kMaxArrays * kGap;

  /// For one launch: each kernel of a process has a ThreadgroupMemory, and histories are large.
  bool allocate(int64_t limit) {
    limit_ = limit < kMost ? limit : kMost;
    memset(arrays_, 0, sizeof(arrays_));
    loaded_from_first_ = 0;
    history_ = static_cast<ByteHistory*>(calloc(kArenaBytes, sizeof(ByteHistory)));
    used_ = kGap;
    declared_ = 0;
    return history_ != nullptr;
  }

  void release() {
    free(history_);
    history_ = nullptr;
  }

  void poison() { memset(arena_, 0xff, used_); }  // a NaN in every float type

  /// Null when the declarations exceed what the platform allows.
  void* array(int id, int64_t bytes, int64_t alignment) {
    Array& array = arrays_[id % kMaxArrays];
    if (array.bytes == 0) {
      const int64_t offset = (used_ + alignment - 1) / alignment * alignment;
      declared_ += bytes;
      if (declared_ > limit_) return nullptr;
      if (used_ == kGap) first_end_ = offset + bytes;
      array = {offset, bytes};
      used_ = offset + bytes + kGap;
      memset(arena_ + offset, 0xff, bytes);
    }
    return arena_ + array.offset;
  }

  bool holds(uintptr_t address) const { return address - reinterpret_cast<uintptr_t>(arena_) < sizeof(arena_); }

  Fault access(uintptr_t address, int64_t bytes, bool is_write, const Accessor& by) {
    const auto offset = static_cast<int64_t>(address - reinterpret_cast<uintptr_t>(arena_));
    if (!inside_one_array(offset, bytes)) return "is outside of every threadgroup array";
    for (int64_t i = offset; i < offset + bytes; ++i) {
      if (Fault fault = is_write ? history_[i].write(by) : history_[i].read(by)) return fault;
    }
    if (!is_write && offset < first_end_) loaded_from_first_ += bytes;
    return nullptr;
  }

  int64_t distance(uintptr_t address) const {
    return static_cast<int64_t>(address - reinterpret_cast<uintptr_t>(arena_)) - kGap;  // the first array's start is 0
  }
  int64_t declared() const { return declared_; }
  int64_t loaded_from_first() const { return loaded_from_first_; }

 private:
  struct Array {
    int64_t offset, bytes;
  };

  bool inside_one_array(int64_t offset, int64_t bytes) const {
    for (const Array& array : arrays_) {
      if (array.bytes != 0 && offset >= array.offset && offset + bytes <= array.offset + array.bytes) return true;
    }
    return false;
  }

  alignas(256) unsigned char arena_[kArenaBytes];
  ByteHistory* history_ = nullptr;
  Array arrays_[kMaxArrays];
  int64_t limit_ = 0;
  int64_t used_ = 0;
  int64_t declared_ = 0;
  int64_t first_end_ = 0;  // of the array declared first
  int64_t loaded_from_first_ = 0;
};

/// A buffer's bytes: for an output their history, for an input which group last loaded them.
class DeviceMemory {
 public:
  bool allocate(Buffer* buffer) {
    buffer_ = buffer;
    buffer->loaded = buffer->loaded_once = buffer->stored = 0;
    begin_ = reinterpret_cast<uintptr_t>(buffer->data);
    loaded_by_ = static_cast<uint32_t*>(calloc(buffer->bytes + 1, sizeof(uint32_t)));
    if (buffer->is_output) {
      history_ = static_cast<ByteHistory*>(calloc(buffer->bytes + 1, sizeof(ByteHistory)));
      memset(buffer->data, 0xff, buffer->bytes);
    }
    return loaded_by_ != nullptr && (history_ != nullptr || !buffer->is_output);
  }

  void release() {
    free(loaded_by_);
    free(history_);
    loaded_by_ = nullptr;
    history_ = nullptr;
  }

  bool holds(uintptr_t address, int64_t bytes) const {
    return address >= begin_ && address + bytes <= begin_ + buffer_->bytes;
  }

  Fault access(uintptr_t address, int64_t bytes, bool is_write, const Accessor& by) {
    const auto offset = static_cast<int64_t>(address - begin_);
    if (is_write && !buffer_->is_output) return "is in an input, which is read-only";
    for (int64_t i = offset; i < offset + bytes; ++i) {
      if (history_ != nullptr) {
        if (is_write && history_[i].written() && !history_[i].written_in(by.group)) {
          return "is also written by another threadgroup";
        }
        if (Fault fault = is_write ? history_[i].write(by) : history_[i].read(by)) return fault;
      }
      if (!is_write && loaded_by_[i] != by.group) {
        loaded_by_[i] = by.group;
        ++buffer_->loaded_once;
      }
    }
    (is_write ? buffer_->stored : buffer_->loaded) += bytes;
    return nullptr;
  }

  /// First byte of an output that no thread wrote; -1 when there is none.
  int64_t first_unwritten() const {
    for (int64_t i = 0; history_ != nullptr && i < buffer_->bytes; ++i) {
      if (!history_[i].written()) return i;
    }
    return -1;
  }

  const Buffer& buffer() const { return *buffer_; }
  int64_t distance(uintptr_t address) const { return static_cast<int64_t>(address - begin_); }

 private:
  Buffer* buffer_ = nullptr;
  uintptr_t begin_ = 0;
  uint32_t* loaded_by_ = nullptr;
  ByteHistory* history_ = nullptr;
};

}  // namespace metal_host
