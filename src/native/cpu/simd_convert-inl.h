// Loads and stores of float32, float16 and bfloat16 memory as float32 vectors. Included once per SIMD target.
#if defined(NATTEN_NATIVE_CPU_SIMD_CONVERT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_SIMD_CONVERT_INL_H_
#undef NATTEN_NATIVE_CPU_SIMD_CONVERT_INL_H_
#else
#define NATTEN_NATIVE_CPU_SIMD_CONVERT_INL_H_
#endif

#include <cstring>

#include "hwy/highway.h"
#include "native/cpu/half.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class D>
HWY_INLINE hn::Vec<D> load_float(D d, const float* HWY_RESTRICT from) {
  return hn::LoadU(d, from);
}

template <class D>
HWY_INLINE hn::Vec<D> load_float(D d, const BFloat* HWY_RESTRICT from) {
  const hn::Rebind<std::uint16_t, D> d16;
  const hn::Rebind<std::uint32_t, D> d32;
  const auto bits = hn::LoadU(d16, reinterpret_cast<const std::uint16_t*>(from));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
}

template <class D>
HWY_INLINE void store_float(D d, hn::Vec<D> value, float* HWY_RESTRICT to) {
  hn::StoreU(value, d, to);
}

template <class D>
HWY_INLINE void store_float(D, hn::Vec<D> value, BFloat* HWY_RESTRICT to) {
  const hn::Rebind<std::uint32_t, D> d32;
  const hn::Rebind<std::int32_t, D> d32s;
  const hn::Rebind<std::uint16_t, D> d16;
  const auto bits = hn::BitCast(d32, value);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1u));
  const auto rounded = hn::Add(hn::Add(bits, hn::Set(d32, 0x7fffu)), odd);
  const auto is_nan = hn::RebindMask(d32, hn::Ne(value, value));
  const auto chosen = hn::IfThenElse(is_nan, hn::Or(bits, hn::Set(d32, 0x400000u)), rounded);
  hn::StoreU(hn::DemoteTo(d16, hn::BitCast(d32s, hn::ShiftRight<16>(chosen))), d16,
             reinterpret_cast<std::uint16_t*>(to));
}

#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
// Highway's own conversions of float16 truncate on these targets (the first is GCC's, the second clang's) and know no
// infinity.
template <class D>
HWY_INLINE hn::Vec<D> load_float(D d, const Half* HWY_RESTRICT from) {
  HWY_ALIGN float lanes[hn::MaxLanes(d)];
  for (std::size_t i = 0; i < hn::Lanes(d); ++i) lanes[i] = to_float(from[i]);
  return hn::Load(d, lanes);
}

template <class D>
HWY_INLINE void store_float(D d, hn::Vec<D> value, Half* HWY_RESTRICT to) {
  HWY_ALIGN float lanes[hn::MaxLanes(d)];
  hn::Store(value, d, lanes);
  for (std::size_t i = 0; i < hn::Lanes(d); ++i) from_float(lanes[i], to[i]);
}
#else
template <class D>
HWY_INLINE hn::Vec<D> load_float(D d, const Half* HWY_RESTRICT from) {
  const hn::Rebind<hwy::float16_t, D> d16;
  return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(from)));
}

template <class D>
HWY_INLINE void store_float(D, hn::Vec<D> value, Half* HWY_RESTRICT to) {
  const hn::Rebind<hwy::float16_t, D> d16;
  hn::StoreU(hn::DemoteTo(d16, value), d16, reinterpret_cast<hwy::float16_t*>(to));
}
#endif

// Partial vectors go through a buffer: a masked load of 16-bit lanes may touch memory behind the masked lanes, and so
// may any masked load of a target that has none, such as NEON.
template <class D, class T>
HWY_INLINE hn::Vec<D> load_float_n(D d, const T* HWY_RESTRICT from, std::size_t count) {
  if constexpr (sizeof(T) == 4 && !HWY_MEM_OPS_MIGHT_FAULT) {
    return hn::MaskedLoad(hn::FirstN(d, count), d, from);
  } else {
    alignas(64) T buffer[hn::MaxLanes(D())] = {};
    std::memcpy(buffer, from, count * sizeof(T));
    return load_float(d, buffer);
  }
}

template <class D, class T>
HWY_INLINE void store_float_n(D d, hn::Vec<D> value, T* HWY_RESTRICT to, std::size_t count) {
  alignas(64) T buffer[hn::MaxLanes(D())];
  store_float(d, value, buffer);
  std::memcpy(to, buffer, count * sizeof(T));
}

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_SIMD_CONVERT_INL_H_
