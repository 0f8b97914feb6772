// Hopper's instructions for warpgroups (sm_90a), by what the kernels do with them: barriers in shared memory, products
// that run beside what follows, registers that producers hand on. The products themselves are generated
// (kernel_source.cpp).
namespace natten {

NATTEN_FN int hardware_lane() {
  return threadIdx.x % 32;
}

#ifndef NATTEN_EMULATED
/// Barriers in shared memory (PTX mbarrier), by address.
NATTEN_FN unsigned shared_address(const void* p) {
  return unsigned(__cvta_generic_to_shared(p));
}
NATTEN_FN void start_barrier(unsigned barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
NATTEN_FN void arrive(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// Arrives once all copies that the thread has begun are done.
NATTEN_FN void arrive_after_copies(unsigned barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
NATTEN_FN void wait_for(unsigned barrier, unsigned phase) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra.uni past;\nbra.uni again;\npast:\n}" ::"r"(barrier),
      "r"(phase)
      : "memory");
}
/// Makes barriers that were started visible to all.
NATTEN_FN void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
/// Orders shared memory that threads wrote before what matrix units read of it.
NATTEN_FN void publish_to_units() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
/// Copies that run beside what follows, of 16 and of 4 bytes; two numbers from shared memory.
template <class P>
NATTEN_FN void copy_piece(unsigned to, P from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
/// The same, or zeros.
template <class P>
NATTEN_FN void copy_piece(unsigned to, P from, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(exists ? 16 : 0) : "memory");
}
NATTEN_FN void copy_number(unsigned to, const float* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}
NATTEN_FN float2 load_numbers(unsigned from) {
  float2 n;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(n.x), "=f"(n.y) : "r"(from));
  return n;
}
NATTEN_FN void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
NATTEN_FN void arrive_at_named(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

NATTEN_FN void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
NATTEN_FN void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
NATTEN_FN void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
/// From producers to consumers, where they are a warpgroup.
NATTEN_FN void hand_registers_on() {
#if NA_PRODUCER_REGISTERS
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(NA_PRODUCER_REGISTERS));
#endif
}
NATTEN_FN void take_registers() {
#if NA_PRODUCER_REGISTERS
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(NA_CONSUMER_REGISTERS));
#endif
}

/// Stores what is never stored, which holds what computes it back (hold_back); leaves the compiler in the dark (pin).
NATTEN_FN void store_negative(float x, unsigned address) {
  asm volatile("{.reg .pred p; setp.lt.f32 p, %0, 0f00000000; @p st.shared.f32 [%1], %0;}" ::"f"(x), "r"(address)
               : "memory");
}
NATTEN_FN void store_negative(int x, unsigned address) {
  asm volatile("{.reg .pred p; setp.lt.s32 p, %0, 0; @p st.shared.b32 [%1], %0;}" ::"r"(x), "r"(address) : "memory");
}
NATTEN_FN void pin(float& x) {
  asm volatile("" : "+f"(x)::"memory");
}
#endif

}  // namespace natten
