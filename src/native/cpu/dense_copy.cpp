#include "native/cpu/dense_copy.h"

#include <cstring>

namespace natten::cpu {
namespace {

template <class T>
void copy_axis(const DenseCopy& copy, std::size_t axis, const T* from, T* to, std::int64_t block) {
  if (axis == copy.shape.size()) {
    *to = *from;
    return;
  }
  const std::int64_t length = copy.shape[axis], stride = copy.strides[axis];
  const std::int64_t inner = length == 0 ? 0 : block / length;
  if (axis + 1 == copy.shape.size()) {
    for (std::int64_t i = 0; i < length; ++i) to[i] = from[i * stride];
    return;
  }
  for (std::int64_t i = 0; i < length; ++i) copy_axis(copy, axis + 1, from + i * stride, to + i * inner, inner);
}

template <class T>
void copy_all(const DenseCopy& copy, std::int64_t size) {
  copy_axis(copy, 0, reinterpret_cast<const T*>(copy.from), reinterpret_cast<T*>(copy.to), size);
}

}  // namespace

bool DenseCopy::is_dense() const {
  std::int64_t stride = 1;
  for (std::size_t i = shape.size(); i-- > 0; stride *= shape[i]) {
    if (shape[i] != 1 && strides[i] != stride) return false;
  }
  return true;
}

void DenseCopy::run() const {
  std::int64_t size = 1;
  for (const std::int64_t length : shape) size *= length;
  if (size == 0) return;
  if (is_dense()) {
    std::memcpy(to, from, static_cast<std::size_t>(size * element_size));
  } else {
    element_size == 2 ? copy_all<std::uint16_t>(*this, size) : copy_all<std::uint32_t>(*this, size);
  }
}

}  // namespace natten::cpu
