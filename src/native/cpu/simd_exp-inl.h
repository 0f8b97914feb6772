// exp of float32 vectors. Included once per SIMD target.
#if defined(NATTEN_NATIVE_CPU_SIMD_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_SIMD_EXP_INL_H_
#undef NATTEN_NATIVE_CPU_SIMD_EXP_INL_H_
#else
#define NATTEN_NATIVE_CPU_SIMD_EXP_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// exp(x) for x <= 88, relative error 2e-7; 0 below -87.3 (where float32 becomes subnormal), NaN for NaN.
/// x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial for exp(r), and n put into the exponent.
template <class D>
HWY_INLINE hn::Vec<D> exp_float(D d, hn::Vec<D> x) {
  const hn::Rebind<std::int32_t, D> di;
  const auto n = hn::Round(hn::Mul(x, hn::Set(d, 1.44269504f)));
  auto r = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), x);  // ln 2 in two parts, the first with few bits
  r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), r);
  auto y = hn::Set(d, 1.9875691500e-4f);  // Cephes expf: minimax on [-ln 2 / 2, ln 2 / 2]
  y = hn::MulAdd(y, r, hn::Set(d, 1.3981999507e-3f));
  y = hn::MulAdd(y, r, hn::Set(d, 8.3334519073e-3f));
  y = hn::MulAdd(y, r, hn::Set(d, 4.1665795894e-2f));
  y = hn::MulAdd(y, r, hn::Set(d, 1.6666665459e-1f));
  y = hn::MulAdd(y, r, hn::Set(d, 5.0000001201e-1f));
  y = hn::MulAdd(y, hn::Mul(r, r), hn::Add(r, hn::Set(d, 1.0f)));
  const auto exponent = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127)));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -87.3f)), hn::Mul(y, hn::BitCast(d, exponent)));
}

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_SIMD_EXP_INL_H_
