// Threads of a threadgroup as fibres: stacks of their own in one OS thread, and a switch between them.
#pragma once

#include "interface.h"

namespace em {

constexpr em_u64 STACK = 64 * 1024;

// Saves the running context's registers on its stack and its stack pointer in `*from`; goes on at `to`.
void switch_stack(void** from, void* to);

// The low end of fibre `index`'s stack. An unmapped page lies below each. Kept for the process.
char* stack_of(em_u32 index);

// Whether the address lies in the unmapped page below some stack.
bool in_guard(const void* address);

// A stack pointer for `switch_stack` at which `start` begins on fibre `index`'s stack.
void* fresh_stack(em_u32 index, void (*start)());

}  // namespace em
