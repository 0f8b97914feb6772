// The neighborhood of a query: the parameters of every operation of this library.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <utility>
#include <vector>

namespace natten {

/// One value for every axis, or one value per axis, in the order of the spatial axes.
template <class T>
class PerAxis {
 public:
  PerAxis(T value) : values_{value}, is_scalar_(true) {}
  PerAxis(std::initializer_list<T> values) : values_(values) {}
  PerAxis(std::vector<T> values) : values_(std::move(values)) {}

  bool is_scalar() const { return is_scalar_; }
  std::size_t size() const { return values_.size(); }
  T operator[](std::size_t axis) const { return values_[is_scalar_ ? 0 : axis]; }

 private:
  std::vector<T> values_;
  bool is_scalar_ = false;
};

/// Which keys a query attends. `Neighborhood{.kernel_size = 7}`, `Neighborhood{.kernel_size = {7, 3}, .dilation = 2}`.
struct Neighborhood {
  PerAxis<std::int64_t> kernel_size;     ///< keys per axis, K >= 1; K * dilation <= length
  PerAxis<std::int64_t> stride = 1;      ///< only queries 0, s, 2s, ... are computed; 1 <= s <= K
  PerAxis<std::int64_t> dilation = 1;    ///< distance of neighboring keys, d >= 1
  PerAxis<bool> is_causal = false;       ///< keys after the query are not attended
  PerAxis<std::int64_t> gna_stride = 1;  ///< queries that share a window; 1 <= u <= K, not with stride > 1
};

}  // namespace natten
