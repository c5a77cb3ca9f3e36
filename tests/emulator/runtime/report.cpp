// How a fault is told: its words, and the return addresses from which Python finds the lines.
#include "state.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "fibre.h"

namespace em {

// The chain of frame pointers; kernels are compiled with them. Ends where it leaves the fibre's stack.
static em_u32 trace(const Fibre& fibre, void* frame, em_u64* addresses) {
  em_u32 count = 0;
  for (void** at = (void**)frame; count < EM_FRAMES;) {
    if ((em_u64)((char*)at - fibre.stack) > STACK - 16) break;
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
  em_u32 count = trace(*current, frame, addresses);
  em_u64 hash = 0;
  for (em_u32 i = 0; i < count; i++) hash = (hash ^ addresses[i]) * 0x9e3779b97f4a7c15ull;
  return hash;
}

static void trace_offsets(em_u64* addresses, const Fibre& fibre, void* frame) {
  em_u32 count = trace(fibre, frame, addresses);
  for (em_u32 i = 0; i < count; i++) addresses[i] -= (em_u64)launch.object;
}

static void trace_place(em_u32 which, const Fibre& fibre, void* frame) {
  trace_offsets(launch.report->places[which], fibre, frame);
}

void set_place(em_u32 which, em_u64 return_offset) { launch.report->places[which][0] = return_offset; }

void set_place(em_u32 which, const Fibre& waiting) { trace_place(which, waiting, waiting.frame); }

Pending pending;

void keep_pending(void* frame, const char* text, ...) {
  pending.serial = launch.serial;
  if (pending.is) return;
  pending.is = true;
  va_list values;
  va_start(values, text);
  vsnprintf(pending.text, sizeof pending.text, text, values);
  va_end(values);
  trace_offsets(pending.place, *current, frame);
}

void tell_pending() {
  memcpy(launch.report->places[0], pending.place, sizeof pending.place);
  pending.is = false;
  fail("uninitialised", nullptr, "%s", pending.text);
}

void fail(const char* kind, void* frame, const char* text, ...) {
  em_report* report = launch.report;
  if (pending.is && pending.serial == launch.serial && strcmp(kind, "race")) {
    launch.stopped = true;
  } else if (!report->failed) {
    report->failed = 1;
    snprintf(report->kind, sizeof report->kind, "%s", kind);
    va_list values;
    va_start(values, text);
    vsnprintf(report->text, sizeof report->text, text, values);
    va_end(values);
    if (current && frame) trace_place(0, *current, frame);
  }
  if (current) leave_fibre();
}

static char* next_buffer() {
  static char buffers[8][96];
  static int turn = 0;
  return buffers[turn++ % 8];
}

void locate_group(em_u32 index, em_u32* at) {
  const em_u32* groups = launch.request->groups;
  at[0] = index % groups[0];
  at[1] = index / groups[0] % groups[1];
  at[2] = index / groups[0] / groups[1];
}

const char* group_name(em_u32 serial) {
  const em_u32* groups = launch.request->groups;
  em_u32 at[3];
  locate_group(launch.order[serial - launch.first_serial], at);
  char* text = next_buffer();
  if (groups[1] == 1 && groups[2] == 1)
    snprintf(text, 96, "threadgroup %u", at[0]);
  else
    snprintf(text, 96, "threadgroup (%u, %u, %u)", at[0], at[1], at[2]);
  return text;
}

const char* thread_name(em_u32 index, em_u32 serial) {
  const em_u32* size = launch.request->group_size;
  char* text = next_buffer();
  if (size[1] == 1 && size[2] == 1)
    snprintf(text, 96, "thread %u of %s", index, group_name(serial));
  else
    snprintf(text, 96, "thread (%u, %u, %u) of %s", index % size[0], index / size[0] % size[1],
             index / size[0] / size[1], group_name(serial));
  return text;
}

const char* this_thread() { return thread_name((em_u32)(current - fibres), launch.serial); }

}  // namespace em
