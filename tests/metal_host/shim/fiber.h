// Fibers: one stack per emulated GPU thread, switched by hand. On x86-64 the switch is ten instructions; elsewhere, and
// under AddressSanitizer, which must be able to follow it, it is ucontext's.
#pragma once

#include <stdint.h>

#include "launch.h"

#if !defined(__x86_64__) || defined(__SANITIZE_ADDRESS__) || defined(METAL_HOST_UCONTEXT)
#define METAL_HOST_USES_UCONTEXT 1
#include <ucontext.h>
#else
extern "C" __attribute__((visibility("hidden"))) void metal_host_switch(void** save, void* load);
asm(R"(
.text
.hidden metal_host_switch
.globl metal_host_switch
metal_host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#endif

namespace metal_host {

class Fiber {
 public:
  using Entry = void (*)();

  /// Makes the fiber start at `entry` (which must never return) on `stack` when it is next resumed.
  void reset(char* stack, Entry entry) {
    stack_ = stack;
#ifdef METAL_HOST_USES_UCONTEXT
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_;
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#else
    auto** top = reinterpret_cast<void**>(stack_ + kStackBytes);
    top[-1] = nullptr;  // where a return address of `entry` would be: keeps the ABI's alignment
    top[-2] = reinterpret_cast<void*>(entry);
    for (int i = 3; i <= 8; ++i) top[-i] = nullptr;  // the six saved registers
    context_ = top - 8;
#endif
  }

  static void resume(Fiber& from, Fiber& to) {
#ifdef METAL_HOST_USES_UCONTEXT
    swapcontext(&from.context_, &to.context_);
#else
    metal_host_switch(&from.context_, to.context_);
#endif
  }

  uintptr_t stack() const {
    return reinterpret_cast<uintptr_t>(stack_);
  }

 private:
  char* stack_ = nullptr;
#ifdef METAL_HOST_USES_UCONTEXT
  ucontext_t context_;
#else
  void* context_ = nullptr;
#endif
};

}  // namespace metal_host
