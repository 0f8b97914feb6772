// In place of MLX's header, whose constructors by address space clang does not use for temporary objects: its names.
#pragma once
#include "mlx/backend/metal/kernels/bf16.h"

template <typename T>
struct complex_t {
  T real, imag;
  constexpr complex_t(T re, T im = 0) : real(re), imag(im) {}
};
using complex32_t = complex_t<half>;
using complex64_t = complex_t<float>;

template <typename T>
static constexpr constant bool is_complex_v = false;
template <typename From, typename To>
static constexpr constant bool is_lane_convertible_v = false;
