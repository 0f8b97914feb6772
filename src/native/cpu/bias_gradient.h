// Sum of the position bias' gradient over all queries, in an order that does not depend on the threads.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

namespace natten::cpu {

/// Partial tables, of which those of one owner (some heads) are added up in the order of the parts. The first part adds
/// to the result itself. Which part a query belongs to, and how many there are, depends on the problem only.
class BiasGradient {
 public:
  /// `drpb`, which holds `owners` tables of `entries` each, or null: then there is nothing to sum. Not more than
  /// `wanted` parts, and as few as keep the memory below a limit.
  BiasGradient(float* drpb, std::int64_t owners, std::int64_t entries, std::int64_t wanted);

  std::int64_t parts() const { return parts_; }
  /// Null when there is nothing to sum.
  float* part(std::int64_t owner, std::int64_t part) const {
    if (part == 0 || drpb_ == nullptr) return drpb_ == nullptr ? nullptr : drpb_ + owner * entries_;
    return partial_.get() + ((part - 1) * owners_ + owner) * entries_;
  }
  void add_up() const;

 private:
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  float* drpb_;
  std::int64_t owners_, entries_, parts_;
  std::unique_ptr<float, Free> partial_;
};

/// Overrides the limit of the memory of all partial tables, in bytes; 0 returns to the default. For tests.
void set_bias_gradient_limit(std::int64_t bytes);

}  // namespace natten::cpu
