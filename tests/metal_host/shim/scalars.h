// The two 16-bit float types of Metal, in software, so that they round the same everywhere. Every operation on them
// computes in float and rounds once to nearest even, which is exact rounding for + - * / and sqrt. Conversions from
// float are explicit, which is stricter than Metal: kernels must say where they round.
#pragma once

#include <stdint.h>

namespace metal_host {

inline uint32_t bits_of(float x) {
  return __builtin_bit_cast(uint32_t, x);
}
inline float float_of(uint32_t x) {
  return __builtin_bit_cast(float, x);
}

inline float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000u) << 16;
  const uint32_t magnitude = uint32_t(h & 0x7fffu) << 13;
  if (magnitude >= 0x0f800000u) return float_of(sign | magnitude | 0x7f800000u);  // infinity, NaN
  return float_of(sign | bits_of(float_of(magnitude) * 0x1p112f));                // exact, subnormals too
}

inline uint16_t float_to_half(float x) {
  const uint32_t sign = bits_of(x) >> 16 & 0x8000u;
  uint32_t magnitude = bits_of(x) & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {                                  // below the least normal: round by adding 0.5
    return uint16_t(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)));
  }
  magnitude += 0xfffu + (magnitude >> 13 & 1u);
  return uint16_t(sign | ((magnitude - 0x38000000u) >> 13));
}

inline uint16_t float_to_bfloat(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t(bits >> 16 | 0x40u);
  return uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace metal_host

#define METAL_HOST_FLOAT16(NAME, WIDEN, ROUND)                    \
  struct NAME {                                                   \
    uint16_t bits;                                                \
    NAME() = default;                                             \
    template <class T, class = decltype(static_cast<float>(T()))> \
    explicit NAME(T x) : bits(ROUND(static_cast<float>(x))) {}    \
    operator float() const { return WIDEN; }                      \
  };                                                              \
  inline NAME operator+(NAME a, NAME b) {                         \
    return NAME(float(a) + float(b));                             \
  }                                                               \
  inline NAME operator-(NAME a, NAME b) {                         \
    return NAME(float(a) - float(b));                             \
  }                                                               \
  inline NAME operator*(NAME a, NAME b) {                         \
    return NAME(float(a) * float(b));                             \
  }                                                               \
  inline NAME operator/(NAME a, NAME b) {                         \
    return NAME(float(a) / float(b));                             \
  }                                                               \
  inline NAME operator-(NAME a) {                                 \
    return NAME(-float(a));                                       \
  }                                                               \
  inline NAME& operator+=(NAME& a, NAME b) {                      \
    return a = a + b;                                             \
  }                                                               \
  inline NAME& operator-=(NAME& a, NAME b) {                      \
    return a = a - b;                                             \
  }                                                               \
  inline NAME& operator*=(NAME& a, NAME b) {                      \
    return a = a * b;                                             \
  }                                                               \
  inline NAME& operator/=(NAME& a, NAME b) {                      \
    return a = a / b;                                             \
  }

METAL_HOST_FLOAT16(half, metal_host::half_to_float(bits), metal_host::float_to_half)
METAL_HOST_FLOAT16(bfloat, metal_host::float_of(uint32_t(bits) << 16), metal_host::float_to_bfloat)
#undef METAL_HOST_FLOAT16

// MLX's names, which its generated signatures use.
typedef half float16_t;
typedef bfloat bfloat16_t;
