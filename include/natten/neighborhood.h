// The neighborhood of a query: the parameters of every operation of this library.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

namespace natten {

/// One value for every axis, or one value per axis, in the order of the spatial axes.
template <class T>
class PerAxis {
 public:
  PerAxis(T value) : values_{value}, size_(1), is_scalar_(true) {}
  PerAxis(std::initializer_list<T> values) : PerAxis(values.begin(), values.end()) {}
  PerAxis(const std::vector<T>& values) : PerAxis(values.begin(), values.end()) {}

  bool is_scalar() const { return is_scalar_; }
  std::size_t size() const { return size_; }
  T operator[](std::size_t axis) const { return values_[is_scalar_ ? 0 : axis]; }

 private:
  template <class Iterator>
  PerAxis(Iterator begin, Iterator end) : size_(static_cast<std::size_t>(end - begin)) {
    for (std::size_t i = 0; i < values_.size() && begin != end; ++i) values_[i] = *begin++;
  }

  std::array<T, 3> values_{};  // more are counted only: no operation has so many axes
  std::size_t size_ = 0;
  bool is_scalar_ = false;
};

/// Which keys a query attends. `Neighborhood{.kernel_size = 7}`, `Neighborhood{.kernel_size = {7, 3}, .dilation = 2}`.
struct Neighborhood {
  PerAxis<std::int64_t> kernel_size;     ///< keys per axis, K >= 1; K * dilation <= length where not causal
  PerAxis<std::int64_t> stride = 1;      ///< only queries 0, s, 2s, ... are computed; 1 <= s <= K
  PerAxis<std::int64_t> dilation = 1;    ///< distance of neighboring keys, d >= 1
  PerAxis<bool> is_causal = false;       ///< keys after the query are not attended
  PerAxis<std::int64_t> gna_stride = 1;  ///< queries that share a window; 1 <= u <= K, not with stride > 1
  PerAxis<bool> is_circular = false;     ///< windows wrap around; not causal, d divides L and u divides L / d
};

/// The keys that a span of queries needs, per axis.
struct KeySpan {
  std::vector<std::int64_t> key_start;  ///< on a circular axis perhaps negative, and start + rows perhaps above L
  std::vector<std::int64_t> rows;       ///< 0 where the query stride leaves no query to compute
};

/// The keys that the queries at positions [query_start, query_start + rows) of axes of length `shape` need: from the
/// least to the last one of their windows, all of a circular axis where they go around it. One value per axis; scalars
/// serve every axis, and only scalars are one axis. Throws std::invalid_argument.
KeySpan key_span(const Neighborhood& neighborhood, const PerAxis<std::int64_t>& query_start,
                 const PerAxis<std::int64_t>& rows, const PerAxis<std::int64_t>& shape);

}  // namespace natten
