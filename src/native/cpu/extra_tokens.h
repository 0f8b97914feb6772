// Extra tokens, which every query attends besides its window, for all tasks of a call.
#pragma once

#include <cstdint>
#include <vector>

#include "native/cpu/kernels.h"

namespace natten::cpu {

inline constexpr std::int64_t kLine = 16;  ///< floats of a cache line

constexpr std::int64_t whole_lines(std::int64_t floats) {
  return (floats + kLine - 1) / kLine * kLine;
}
/// The first line in memory that is kLine floats too long.
inline float* at_line(float* memory) {
  const auto floats = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(memory) / sizeof(float));
  return memory + whole_lines(floats) - floats;
}

/// Keys and values, or sums of their gradients, as float32: [sample, or one for all][key head], each [token][pitch] of
/// keys and then of values. Pitches are whole cache lines.
class ExtraTokens {
 public:
  /// Zeros, laid out for the tensors.
  ExtraTokens(const Problem& problem, const Tensor& key, const Tensor& value);

  std::int64_t count() const { return count_; }  ///< tokens
  std::int64_t pitch() const { return pitch_; }
  std::int64_t value_pitch() const { return value_pitch_; }
  /// Floats of one key head of a sample.
  std::int64_t size() const { return count_ * (pitch_ + value_pitch_); }
  float* keys(std::int64_t sample, std::int64_t kv_head) const {
    return rows_ + (sample % samples_ * kv_heads_ + kv_head) * size();
  }
  float* values(std::int64_t sample, std::int64_t kv_head) const { return keys(sample, kv_head) + count_ * pitch_; }

  void load();
  void store() const;

 private:
  template <class Visit>
  void for_each_row(Visit&& visit) const;

  const Tensor key_, value_;
  const std::int64_t count_, dim_, value_dim_, pitch_, value_pitch_, kv_heads_;
  const std::int64_t samples_;  ///< 1 where all share the tokens
  std::vector<float> memory_;
  float* const rows_;
};

}  // namespace natten::cpu
