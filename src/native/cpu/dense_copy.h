// Copy of an array whose layout a kernel cannot read into a row-major one.
#pragma once

#include <cstdint>
#include <vector>

namespace natten::cpu {

struct DenseCopy {
  const char* from;
  char* to;
  std::int64_t element_size;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;  ///< of `from`, in elements

  /// Whether `from` is row-major already.
  bool is_dense() const;
  void run() const;
};

}  // namespace natten::cpu
