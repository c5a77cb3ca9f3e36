// How a fault is told: its words, and the return addresses from which Python finds the lines.
#include "state.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "fibre.h"

namespace em {

// The chain of frame pointers; kernels are compiled with them. Ends where it leaves the fibre's stack.
static em_u32 trace(void* frame, em_u64* addresses, em_u32 most) {
  em_u32 count = 0;
  char* low = current->stack;
  for (void** at = (void**)frame; count < most;) {
    if ((em_u64)((char*)at - low) > STACK - 16) break;
    em_u64 address = (em_u64)at[1];
    void** next = (void**)at[0];
    if (!address) break;
    addresses[count++] = address;
    if (next <= at) break;
    at = next;
  }
  return count;
}

em_u64 place_of(void* frame) {
  em_u64 addresses[EM_FRAMES];
  em_u32 count = trace(frame, addresses, EM_FRAMES);
  em_u64 hash = 0;
  for (em_u32 i = 0; i < count; i++) hash = (hash ^ addresses[i]) * 0x9e3779b97f4a7c15ull;
  return hash;
}

void fail(const char* kind, void* frame, const char* text, ...) {
  em_report* report = launch.report;
  if (!report->failed) {
    report->failed = 1;
    snprintf(report->kind, sizeof report->kind, "%s", kind);
    va_list values;
    va_start(values, text);
    vsnprintf(report->text, sizeof report->text, text, values);
    va_end(values);
    if (current && frame) {
      em_u32 count = trace(frame, report->here, EM_FRAMES);
      for (em_u32 i = 0; i < count; i++) report->here[i] -= (em_u64)launch.object;
    }
  }
  if (current) leave_fibre();
}

void blame(em_u64 return_offset) { launch.report->there[0] = return_offset; }

static char* next_buffer() {
  static char buffers[8][96];
  static int turn = 0;
  return buffers[turn++ % 8];
}

const char* group_name() {
  const em_u32* groups = launch.request->groups;
  const em_u32* at = launch.group;
  char* text = next_buffer();
  if (groups[1] == 1 && groups[2] == 1)
    snprintf(text, 96, "threadgroup %u", at[0]);
  else
    snprintf(text, 96, "threadgroup (%u, %u, %u)", at[0], at[1], at[2]);
  return text;
}

const char* thread_name(em_u32 index) {
  const em_u32* size = launch.request->group_size;
  char* text = next_buffer();
  if (size[1] == 1 && size[2] == 1)
    snprintf(text, 96, "thread %u of %s", index, group_name());
  else
    snprintf(text, 96, "thread (%u, %u, %u) of %s", index % size[0], index / size[0] % size[1],
             index / size[0] / size[1], group_name());
  return text;
}

}  // namespace em
