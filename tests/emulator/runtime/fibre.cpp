#include "fibre.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

namespace em {

// By hand: swapcontext makes system calls for the signal mask and takes thirty times as long.
#if defined(__x86_64__)
__attribute__((naked)) void switch_stack(void**, void*) {
  __asm__(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n"
      "movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n"
      "ret\n");
}
constexpr int SAVED = 6;  // registers below the return address
#elif defined(__aarch64__)
__attribute__((naked)) void switch_stack(void**, void*) {
  __asm__(
      "sub sp, sp, #160\n"
      "stp x29, x30, [sp, #0]\n stp x19, x20, [sp, #16]\n stp x21, x22, [sp, #32]\n stp x23, x24, [sp, #48]\n"
      "stp x25, x26, [sp, #64]\n stp x27, x28, [sp, #80]\n"
      "stp d8, d9, [sp, #96]\n stp d10, d11, [sp, #112]\n stp d12, d13, [sp, #128]\n stp d14, d15, [sp, #144]\n"
      "mov x9, sp\n str x9, [x0]\n mov sp, x1\n"
      "ldp x29, x30, [sp, #0]\n ldp x19, x20, [sp, #16]\n ldp x21, x22, [sp, #32]\n ldp x23, x24, [sp, #48]\n"
      "ldp x25, x26, [sp, #64]\n ldp x27, x28, [sp, #80]\n"
      "ldp d8, d9, [sp, #96]\n ldp d10, d11, [sp, #112]\n ldp d12, d13, [sp, #128]\n ldp d14, d15, [sp, #144]\n"
      "add sp, sp, #160\n"
      "ret\n");
}
constexpr int SAVED = 20;
#else
#error "the emulator switches stacks on x86-64 and aarch64 only"
#endif

static char* stacks = nullptr;
static em_u64 guard = 0;

static em_u64 pitch() { return STACK + guard; }

static void map_stacks() {
  guard = (em_u64)sysconf(_SC_PAGESIZE);
  em_u64 bytes = EM_MAX_THREADS * pitch() + guard;
  void* got = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (got == MAP_FAILED) abort();
  stacks = (char*)got;
  for (em_u32 i = 0; i <= EM_MAX_THREADS; i++) mprotect(stacks + i * pitch(), guard, PROT_NONE);
}

char* stack_of(em_u32 index) {
  if (!stacks) map_stacks();
  return stacks + index * pitch() + guard;
}

bool in_guard(const void* address) {
  em_u64 offset = (em_u64)((const char*)address - stacks);
  return stacks && offset < EM_MAX_THREADS * pitch() && offset % pitch() < guard;
}

void* fresh_stack(em_u32 index, void (*start)()) {
  // Equal offsets of a thousand stacks would fight for the same cache sets.
  uintptr_t top = (uintptr_t)stack_of(index) + STACK - 64 * (index % 61) - 64;
  void** words = (void**)top;
#if defined(__x86_64__)
  // A function begins with its stack 8 bytes off 16; its caller's frame pointer, 0, ends the chain of frames.
  *--words = nullptr;
  *--words = (void*)start;
#endif
  words -= SAVED;
  memset(words, 0, SAVED * sizeof(void*));
#if defined(__aarch64__)
  words[1] = (void*)start;  // x30
#endif
  return words;
}

}  // namespace em
