// Strided tensors in guarded memory, and their exchange with the reference's dense float64 arrays.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>

#include "guarded.h"
#include "native/cpu/half.h"
#include "native/cpu/kernels.h"
#include "reference.h"

namespace natten::cpu::testing {

using oracle::Values;

using Shape = std::array<std::int64_t, 6>;
using Random = std::mt19937_64;

inline std::int64_t pick(Random& random, std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(random);
}
inline bool chance(Random& random, double probability) {
  return std::bernoulli_distribution(probability)(random);
}

class TestTensor {
 public:
  enum class Layout {
    dense,      ///< row-major
    scrambled,  ///< axes in random order and gaps between the rows
    broadcast,  ///< scrambled, and one axis has stride 0
    shared,     ///< scrambled, and the batch has stride 0
    distant,    ///< row-major, but the ends of one axis are more than 2^31 elements apart
  };

  TestTensor(Random& random, const Shape& shape, FloatType type, Layout layout) : shape_(shape) {
    const bool scrambled = layout == Layout::scrambled || layout == Layout::broadcast || layout == Layout::shared;
    tensor_.type = type;
    std::array<int, 5> order = {0, 1, 2, 3, 4};
    if (scrambled) std::shuffle(order.begin(), order.end(), random);
    std::int64_t size = shape[5] + (scrambled ? pick(random, 0, 3) : 0);
    for (int i = 4; i >= 0; --i) {
      tensor_.strides[order[i]] = size;
      size *= shape[order[i]];
      if (scrambled && i > 0 && chance(random, 0.3)) size += pick(random, 1, 5);
    }
    if (layout == Layout::shared) tensor_.strides[0] = 0;
    if (layout == Layout::broadcast) tensor_.strides[pick(random, 0, 4)] = 0;
    if (layout == Layout::distant) {
      std::int64_t axis;
      do axis = pick(random, 0, 4);
      while (shape[axis] == 1);
      tensor_.strides[axis] = size + (std::int64_t{1} << 31) / (shape[axis] - 1);
    }
    const bool is_empty = std::find(shape.begin(), shape.end(), 0) != shape.end();
    std::int64_t last = shape[5] - 1;
    for (int i = 0; i < 5; ++i) last += (shape[i] - 1) * tensor_.strides[i];
    const std::size_t bytes = is_empty ? 0 : (last + 1) * element_size(type);
    if (layout == Layout::distant) {
      sparse_ = std::make_unique<SparseMemory>(bytes);
      tensor_.data = sparse_->data();
    } else {
      guarded_ = std::make_unique<Guarded>(bytes, chance(random, 0.7));
      tensor_.data = guarded_->data();
    }
  }

  const Tensor& tensor() const { return tensor_; }
  float* floats() const { return static_cast<float*>(tensor_.data); }

  /// Stores the values, and replaces them with what is stored (rounded, repeated where broadcast).
  void set(Values& values) {
    for_each([&](std::int64_t flat, auto* element) { from_float(static_cast<float>(values[flat]), *element); });
    values = get();
  }

  Values get() const {
    Values values(std::accumulate(shape_.begin(), shape_.end(), std::int64_t{1}, std::multiplies<>()));
    const_cast<TestTensor*>(this)->for_each(
        [&](std::int64_t flat, auto* element) { values[flat] = to_float(*element); });
    return values;
  }

  /// Forgets what was written, so that a second kernel cannot pass with the first one's results.
  void clear() {
    for_each([](std::int64_t, auto* element) { std::memset(element, Guarded::kSentinel, sizeof(*element)); });
  }

  /// Whether memory outside of the tensor's elements, the gaps between rows too, is untouched. Not known if distant.
  bool is_intact() const {
    if (sparse_) return true;
    const Guarded& memory = *guarded_;
    std::vector<bool> is_element(memory.bytes(), false);
    const_cast<TestTensor*>(this)->for_each([&](std::int64_t, auto* element) {
      const auto offset = reinterpret_cast<std::byte*>(element) - memory.data();
      for (std::size_t i = 0; i < sizeof(*element); ++i) is_element[offset + i] = true;
    });
    for (std::size_t i = 0; i < memory.bytes(); ++i) {
      if (!is_element[i] && memory.data()[i] != std::byte{Guarded::kSentinel}) return false;
    }
    return memory.is_intact();
  }

 private:
  template <class Visit>
  void for_each(Visit&& visit) {
    with_storage_type(tensor_.type, [&](auto storage) {
      auto* data = static_cast<decltype(storage)*>(tensor_.data);
      std::int64_t flat = 0;
      const std::int64_t* s = tensor_.strides;
      for (std::int64_t b = 0; b < shape_[0]; ++b)
        for (std::int64_t i = 0; i < shape_[1]; ++i)
          for (std::int64_t j = 0; j < shape_[2]; ++j)
            for (std::int64_t k = 0; k < shape_[3]; ++k)
              for (std::int64_t h = 0; h < shape_[4]; ++h)
                for (std::int64_t c = 0; c < shape_[5]; ++c)
                  visit(flat++, data + b * s[0] + i * s[1] + j * s[2] + k * s[3] + h * s[4] + c);
    });
  }

  Shape shape_;
  Tensor tensor_;
  std::unique_ptr<Guarded> guarded_;
  std::unique_ptr<SparseMemory> sparse_;
};

}  // namespace natten::cpu::testing
