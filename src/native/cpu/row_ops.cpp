#include "native/cpu/row_ops.h"

#include <algorithm>
#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "native/cpu/row_ops.cpp"
#include "hwy/foreach_target.h"
// Highway asks that these come after foreach_target.h.
#include "hwy/highway.h"
#include "native/cpu/dispatch.h"
#include "native/cpu/simd_convert-inl.h"
#include "native/cpu/simd_exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace {

using FloatTag = hn::ScalableTag<float>;

template <class T>
void load_row(const void* from_bytes, std::int64_t dim, float* HWY_RESTRICT to) {
  const T* HWY_RESTRICT from = static_cast<const T*>(from_bytes);
  const FloatTag d;
  const std::int64_t lanes = hn::Lanes(d);
  std::int64_t c = 0;
  for (; c + lanes <= dim; c += lanes) hn::StoreU(load_float(d, from + c), d, to + c);
  if (c < dim) store_float_n(d, load_float_n(d, from + c, dim - c), to + c, dim - c);
}

template <class T>
void store_row(const float* HWY_RESTRICT from, std::int64_t dim, void* to_bytes) {
  T* HWY_RESTRICT to = static_cast<T*>(to_bytes);
  const FloatTag d;
  const std::int64_t lanes = hn::Lanes(d);
  std::int64_t c = 0;
  for (; c + lanes <= dim; c += lanes) store_float(d, hn::LoadU(d, from + c), to + c);
  if (c < dim) store_float_n(d, load_float_n(d, from + c, dim - c), to + c, dim - c);
}

template <class T>
void dot_rows(const float* HWY_RESTRICT x, const void* rows_bytes, std::int64_t stride, std::int64_t count,
              std::int64_t dim, float* HWY_RESTRICT out) {
  const T* HWY_RESTRICT rows = static_cast<const T*>(rows_bytes);
  const FloatTag d;
  const std::int64_t lanes = hn::Lanes(d);
  const std::int64_t whole = dim - dim % lanes;
  for (std::int64_t r = 0; r < count; ++r) {
    const T* HWY_RESTRICT row = rows + r * stride;
    auto sum0 = hn::Zero(d), sum1 = hn::Zero(d);
    std::int64_t c = 0;
    for (; c + 2 * lanes <= whole; c += 2 * lanes) {
      sum0 = hn::MulAdd(hn::LoadU(d, x + c), load_float(d, row + c), sum0);
      sum1 = hn::MulAdd(hn::LoadU(d, x + c + lanes), load_float(d, row + c + lanes), sum1);
    }
    if (c < whole) sum0 = hn::MulAdd(hn::LoadU(d, x + c), load_float(d, row + c), sum0);
    if (whole < dim) {
      const std::size_t rest = dim - whole;
      sum1 = hn::MulAdd(load_float_n(d, x + whole, rest), load_float_n(d, row + whole, rest), sum1);
    }
    out[r] = hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)));
  }
}

template <class T>
void add_rows(const float* HWY_RESTRICT weights, const void* rows_bytes, std::int64_t stride, std::int64_t count,
              std::int64_t dim, float* HWY_RESTRICT acc) {
  const T* HWY_RESTRICT rows = static_cast<const T*>(rows_bytes);
  const FloatTag d;
  const std::int64_t lanes = hn::Lanes(d);
  std::int64_t c = 0;
  for (; c + 2 * lanes <= dim; c += 2 * lanes) {
    auto sum0 = hn::LoadU(d, acc + c), sum1 = hn::LoadU(d, acc + c + lanes);
    for (std::int64_t r = 0; r < count; ++r) {
      const auto weight = hn::Set(d, weights[r]);
      sum0 = hn::MulAdd(weight, load_float(d, rows + r * stride + c), sum0);
      sum1 = hn::MulAdd(weight, load_float(d, rows + r * stride + c + lanes), sum1);
    }
    hn::StoreU(sum0, d, acc + c);
    hn::StoreU(sum1, d, acc + c + lanes);
  }
  for (; c < dim; c += lanes) {
    const std::size_t rest = std::min(dim - c, lanes);
    auto sum = load_float_n(d, acc + c, rest);
    for (std::int64_t r = 0; r < count; ++r) {
      sum = hn::MulAdd(hn::Set(d, weights[r]), load_float_n(d, rows + r * stride + c, rest), sum);
    }
    store_float_n(d, sum, acc + c, rest);
  }
}

void exp_row_of_target(float* HWY_RESTRICT x, std::int64_t count, float shift_value) {
  const FloatTag d;
  const std::int64_t lanes = hn::Lanes(d);
  const auto shift = hn::Set(d, shift_value);
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) hn::StoreU(exp_float(d, hn::Sub(hn::LoadU(d, x + i), shift)), d, x + i);
  if (i < count) {
    store_float_n(d, exp_float(d, hn::Sub(load_float_n(d, x + i, count - i), shift)), x + i, count - i);
  }
}

float softmax_row_of_target(float* HWY_RESTRICT x, std::int64_t count, float* max) {
  const FloatTag d;
  const std::int64_t lanes = hn::Lanes(d);
  const auto lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
  auto largest = lowest;
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) largest = hn::Max(largest, hn::LoadU(d, x + i));
  if (i < count) {
    const auto rest = hn::FirstN(d, count - i);
    largest = hn::Max(largest, hn::IfThenElse(rest, load_float_n(d, x + i, count - i), lowest));
  }
  *max = hn::GetLane(hn::MaxOfLanes(d, largest));
  exp_row_of_target(x, count, std::isinf(*max) && *max < 0 ? 0.0f : *max);
  auto sum = hn::Zero(d);
  for (i = 0; i + lanes <= count; i += lanes) sum = hn::Add(sum, hn::LoadU(d, x + i));
  if (i < count) sum = hn::Add(sum, load_float_n(d, x + i, count - i));
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

template <class T>
constexpr RowOps kRowOps = {load_row<T>, store_row<T>, dot_rows<T>, add_rows<T>};

RowOps row_ops_of_target(FloatType type) {
  return with_storage_type(type, [](auto storage) { return kRowOps<decltype(storage)>; });
}

}  // namespace
}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace natten::cpu {

HWY_EXPORT(row_ops_of_target);
HWY_EXPORT(exp_row_of_target);
HWY_EXPORT(softmax_row_of_target);

RowOps row_ops(FloatType type) {
  return NATTEN_DISPATCH(row_ops_of_target)(type);
}
void exp_row(float* x, std::int64_t count, float shift) {
  NATTEN_DISPATCH(exp_row_of_target)(x, count, shift);
}
float softmax_row(float* x, std::int64_t count, float* max) {
  return NATTEN_DISPATCH(softmax_row_of_target)(x, count, max);
}

}  // namespace natten::cpu
#endif  // HWY_ONCE
