// Who touched what, and when: a cell for each output element and for each few bytes of threadgroup memory.
#pragma once

#include "interface.h"
#include "memory.h"

namespace em {

bool prepare_shadow();   // for the launch's outputs and threadgroup memory; false after a fault
void check_covered();    // that every output element was written
// `offset` from the begin of threadgroup memory; it may lie outside.
void access_threadgroup(long long offset, em_u32 bytes, bool write, void* frame);
void access_output(Region* region, em_u64 offset, em_u32 bytes, bool write, void* frame);

}  // namespace em
