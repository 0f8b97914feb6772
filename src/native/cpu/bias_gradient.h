// Sum of the position bias' gradient over all queries, in an order that does not depend on the threads.
#pragma once

#include <cstdint>
#include <vector>

#include "native/cpu/kernels.h"
#include "native/cpu/tensor.h"

namespace natten::cpu {

/// One partial table per head and part, where a part is a fixed run of positions; added up in the order of the parts.
class BiasGradient {
 public:
  /// `drpb` may be null: then there is nothing to sum, and run_length() is `default_run`.
  BiasGradient(const Problem& problem, const Grid& grid, std::int64_t default_run, float* drpb);

  std::int64_t run_length() const { return run_length_; }  ///< positions of one part
  float* part(std::int64_t head, std::int64_t part) {
    return drpb_ == nullptr ? nullptr : partial_.data() + (head * parts_ + part) * entries_;
  }
  void add_up();

 private:
  float* drpb_;
  std::int64_t heads_, entries_, run_length_, parts_;
  std::vector<float> partial_;
};

}  // namespace natten::cpu
