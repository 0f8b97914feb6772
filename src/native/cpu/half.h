// The two 16-bit float formats as storage types, and their scalar conversions (round to nearest even).
#pragma once

#include <bit>
#include <cstdint>

#include "definition/problem.h"

namespace natten::cpu {

struct Half {
  std::uint16_t bits;
};
struct BFloat {
  std::uint16_t bits;
};

inline float to_float(float value) {
  return value;
}

inline float to_float(BFloat value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

inline float to_float(Half value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = value.bits & 0x7fffu;
  // Shifted into a float's place the exponent is too small by 112; infinity and NaN need 112 more still.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(scaled) | (magnitude >= 0x7c00u ? 0x7f800000u : 0u);
  return std::bit_cast<float>(bits | sign);
}

inline void from_float(float value, float& result) {
  result = value;
}

inline void from_float(float value, BFloat& result) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  result.bits = static_cast<std::uint16_t>((is_nan ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline void from_float(float value, Half& result) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  } else {
    // Subnormal: adding 0.5 leaves the value, rounded to a multiple of 2^-24, in the low bits.
    half = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  }
  result.bits = static_cast<std::uint16_t>(half | sign);
}

/// Bytes of one element of a tensor of this type.
constexpr std::int64_t element_size(FloatType type) {
  return type == FloatType::float64 ? 8 : type == FloatType::float32 ? 4 : 2;
}

/// Calls f with a value of the storage type that `type` names (any of the three that the kernels take).
template <class F>
decltype(auto) with_storage_type(FloatType type, F&& f) {
  switch (type) {
    case FloatType::float16:
      return f(Half{});
    case FloatType::bfloat16:
      return f(BFloat{});
    default:
      return f(float{});
  }
}

}  // namespace natten::cpu
