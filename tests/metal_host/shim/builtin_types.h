// Metal's 16-bit floats and vectors as clang's built-in types, for the check of address spaces. Classes would not do:
// their copies bind references, which clang ties to one address space. Nothing here is ever run.
#pragma once

typedef _Float16 half;
typedef __fp16 bfloat;  // any other built-in type of 16 bits
typedef half float16_t;
typedef bfloat bfloat16_t;

namespace metal {

template <class T, int N>
using vec = T __attribute__((ext_vector_type(N)));

#define METAL_HOST_VEC_NAMES(T) \
  using T##2 = vec<T, 2>;       \
  using T##3 = vec<T, 3>;       \
  using T##4 = vec<T, 4>;
METAL_HOST_VEC_NAMES(float)
METAL_HOST_VEC_NAMES(half)
METAL_HOST_VEC_NAMES(bfloat)
METAL_HOST_VEC_NAMES(int)
METAL_HOST_VEC_NAMES(uint)
METAL_HOST_VEC_NAMES(ulong)
#undef METAL_HOST_VEC_NAMES

float dot(float2, float2);
float dot(float3, float3);
float dot(float4, float4);

}  // namespace metal
