// The instructions of NVIDIA's GPUs that C++ has no words for. The emulator has its own definitions of them.
#define NATTEN_FN __device__ __forceinline__

#ifndef NATTEN_EMULATED
namespace natten {

/// 2 units in the last place; exp2f adds the handling of subnormal numbers.
NATTEN_FN float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// To shared memory; complete only after `wait_for_copies`.
template <int kBytes>
NATTEN_FN void copy_async(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(unsigned(__cvta_generic_to_shared(to))), "l"(from),
               "n"(kBytes));
}
NATTEN_FN void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// Matrix units multiply __half or __nv_bfloat16, called T, and tf32.
template <class T>
constexpr bool is_half = false;
template <>
constexpr bool is_half<__half> = true;

/// Two numbers, rounded to T; `low` in the lower half.
template <class T>
NATTEN_FN unsigned rounded_pair(float low, float high) {
  unsigned pair;
  if constexpr (is_half<T>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
}
/// c += a * b of 16x16 and 16x8 numbers, in the layout of mma.m16n8k16.
template <class T>
NATTEN_FN void multiply_fragments(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  if constexpr (is_half<T>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}
/// A float with the 10 bits of mantissa that tf32 has.
NATTEN_FN unsigned rounded_tf32(float x) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}
/// c += a * b of 16x8 and 8x8 tf32 numbers, in the layout of mma.m16n8k8.
NATTEN_FN void multiply_tf32(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/// Four 8x8 blocks of 16-bit numbers; lane l gives the address of row l % 8 of block l / 8, which is 16 bytes.
template <bool kTransposed>
NATTEN_FN void load_fragments(unsigned (&to)[4], const void* from) {
  const unsigned address = unsigned(__cvta_generic_to_shared(from));
  if (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  }
}

}  // namespace natten
#endif
