// Runs a threadgroup: every fibre until all wait, then what they wait for is let go, if all have come that must.
#include <stdio.h>
#include <string.h>

#include "fibre.h"
#include "state.h"

namespace em {

Launch launch;
Fibre fibres[EM_MAX_THREADS];
Fibre* current = nullptr;
volatile em_u64 switches = 0;
volatile bool tired = false;
volatile bool ended = false;
volatile bool busy = false;
static void* launcher_stack_pointer = nullptr;

static void suspend() { switch_stack(&current->stack_pointer, launcher_stack_pointer); }

void leave_fibre() {
  current->wait = STOPPED;
  suspend();
}

static void fibre_body() {
  launch.request->entry(launch.arguments, &current->thread);
  current->wait = FINISHED;
  suspend();
}

static void resume(Fibre* fibre) {
  current = fibre;
  switches = switches + 1;
  switch_stack(&launcher_stack_pointer, fibre->stack_pointer);
  current = nullptr;
}

static void begin(em_u32 index) {
  Fibre& fibre = fibres[index];
  const em_u32* size = launch.request->group_size;
  memset(&fibre, 0, sizeof fibre);
  fibre.stack = stack_of(index);
  fibre.stack_pointer = fresh_stack(index, fibre_body);
  em_thread& thread = fibre.thread;
  for (int axis = 0; axis < 3; axis++) {
    thread.group_position[axis] = launch.group[axis];
    thread.group_size[axis] = size[axis];
    thread.groups[axis] = launch.request->groups[axis];
  }
  thread.index_in_group = index;
  thread.position_in_group[0] = index % size[0];
  thread.position_in_group[1] = index / size[0] % size[1];
  thread.position_in_group[2] = index / size[0] / size[1];
}

// xorshift64*: the same order for the same seed everywhere.
static em_u64 random_of(em_u64& state) {
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return state * 0x2545f4914f6cdd1dull;
}

void mix_order(em_u32* order, em_u32 count, em_u32 how, em_u64 seed) {
  for (em_u32 i = 0; i < count; i++) order[i] = how == EM_BACKWARD ? count - 1 - i : i;
  if (how != EM_SHUFFLED) return;
  em_u64 state = seed * 0x9e3779b97f4a7c15ull + 0x1234567;
  for (em_u32 i = count; i > 1; i--) {
    em_u32 j = (em_u32)(random_of(state) % i), kept = order[i - 1];
    order[i - 1] = order[j];
    order[j] = kept;
  }
}

// Whether two threads wait for the same.
static bool alike(const Fibre& a, const Fibre& b) {
  return a.wait == b.wait && a.line == b.line && a.file == b.file && a.place == b.place && a.flags == b.flags &&
         (a.wait != AT_SIMD ||
          (a.operation == b.operation && a.type == b.type && a.operations == b.operations));
}

// "31 at simd_max at line 24 of the body; 1 finished": the threads first..last by what they wait for.
static const char* who_waits(em_u32 first, em_u32 last) {
  static char text[1400];
  bool told[EM_MAX_THREADS] = {};
  int used = 0;
  em_u32 kinds = 0;
  for (em_u32 i = first; i < last; i++) {
    if (told[i]) continue;
    if (kinds == EM_PLACES) {
      snprintf(text + used, sizeof text - used, "; and so on");
      break;
    }
    const Fibre& one = fibres[i];
    em_u32 count = 0;
    for (em_u32 j = i; j < last; j++)
      if (!told[j] && (alike(one, fibres[j]) || (one.wait == FINISHED && fibres[j].wait == FINISHED)))
        told[j] = true, count++;
    used += snprintf(text + used, sizeof text - used, "%s%u ", kinds ? "; " : "", count);
    if (one.wait == FINISHED) {
      used += snprintf(text + used, sizeof text - used, "finished (thread %u%s)", i, count > 1 ? " and on" : "");
    } else {
      const char* what = one.wait == AT_BARRIER        ? "threadgroup_barrier"
                         : one.wait == AT_SIMD_BARRIER ? "simdgroup_barrier"
                                                       : operation_name(one.operation);
      used += snprintf(text + used, sizeof text - used, "at %s {%u|line %u of the %s} (thread %u%s", what, kinds,
                       one.line, one.file, i, count > 1 ? " and on" : "");
      if (one.wait == AT_SIMD)
        used += snprintf(text + used, sizeof text - used, ", simdgroup operation %u", one.operations);
      used += snprintf(text + used, sizeof text - used, ")");
      set_place(kinds, one);
    }
    kinds++;
  }
  return text;
}

static bool all_alike(em_u32 first, em_u32 last) {
  for (em_u32 i = first + 1; i < last; i++)
    if (!alike(fibres[first], fibres[i])) return false;
  return true;
}

static void count_barrier(em_u32* passed, em_u32 flags) {
  for (int memory = 0; memory < 2; memory++)
    if (flags >> memory & 1) passed[memory]++;
}

// Lets the simdgroups go all of whose lanes came to the same operation. One that cannot go on is a fault.
static bool release_simdgroups() {
  bool any = false;
  for (em_u32 first = 0; first < launch.threads; first += EM_SIMD) {
    em_u32 last = first + EM_SIMD < launch.threads ? first + EM_SIMD : launch.threads;
    bool waits = false;
    for (em_u32 i = first; i < last; i++)
      waits |= fibres[i].wait == AT_SIMD || fibres[i].wait == AT_SIMD_BARRIER;
    if (!waits) continue;
    if (last - first < EM_SIMD && fibres[first].wait == AT_SIMD) {
      fail("launch", nullptr, "%s: simdgroup %u has %u threads; %s takes %u", group_name(launch.serial),
           first / EM_SIMD, last - first, operation_name(fibres[first].operation), (em_u32)EM_SIMD);
      return false;
    }
    if (!all_alike(first, last)) {
      fail("divergence", nullptr, "simdgroup %u of %s does not go on together: %s", first / EM_SIMD,
           group_name(launch.serial), who_waits(first, last));
      return false;
    }
    if (fibres[first].wait == AT_SIMD) compute_simd(fibres + first);
    for (em_u32 i = first; i < last; i++) {
      if (fibres[i].wait == AT_SIMD_BARRIER) count_barrier(fibres[i].passed.simdgroup, fibres[i].flags);
      fibres[i].wait = READY;
    }
    any = true;
  }
  return any;
}

static bool release_barrier() {
  if (!all_alike(0, launch.threads)) {
    fail("divergence", nullptr, "%s does not come to one barrier: %s", group_name(launch.serial),
         who_waits(0, launch.threads));
    return false;
  }
  for (em_u32 i = 0; i < launch.threads; i++) {
    count_barrier(fibres[i].passed.threadgroup, fibres[i].flags);
    fibres[i].wait = READY;
  }
  return true;
}

static bool all_finished() {
  for (em_u32 i = 0; i < launch.threads; i++)
    if (fibres[i].wait != FINISHED) return false;
  return true;
}

static em_u32 order[EM_MAX_THREADS];

void run_group() {
  mix_order(order, launch.threads, launch.request->order, launch.request->seed + launch.serial - launch.first_serial);
  for (em_u32 i = 0; i < launch.threads; i++) begin(i);
  tired = false;
  launch.stopped = false;
  go_on();
}

void go_on() {
  while (!launch.report->failed && !ended) {
    for (em_u32 i = 0; i < launch.threads && !launch.report->failed && !ended; i++)
      if (fibres[order[i]].wait == READY) resume(&fibres[order[i]]);
    if (launch.report->failed || ended || launch.stopped || all_finished()) return;
    if (tired) {
      launch.spent = true;
      fail("endless", nullptr, "%s goes on for %g s without coming to its end: %s", group_name(launch.serial),
           launch.request->patience, who_waits(0, launch.threads));
      return;
    }
    bool released = release_simdgroups();
    if (!released && !launch.report->failed && !launch.stopped) release_barrier();
    if (launch.stopped) return;
  }
}

static void wait_at(Wait wait, em_u32 flags, em_u32 line, const char* file, void* frame) {
  current->wait = wait;
  current->flags = flags;
  current->line = line;
  current->file = file;
  current->frame = frame;
  current->place = place_of(frame);
  suspend();
}

}  // namespace em

using namespace em;

void em_threadgroup_barrier(em_u32 flags, em_u32 line, const char* file) {
  wait_at(AT_BARRIER, flags, line, file, __builtin_frame_address(0));
}

void em_simdgroup_barrier(em_u32 flags, em_u32 line, const char* file) {
  wait_at(AT_SIMD_BARRIER, flags, line, file, __builtin_frame_address(0));
}

em_u32 em_simd(em_u32 operation, em_u32 type, em_u32 bits, em_u32 operand, em_u32 line, const char* file) {
  current->operation = operation;
  current->type = type;
  current->bits = bits;
  current->operand = operand;
  current->operations++;
  wait_at(AT_SIMD, 0, line, file, __builtin_frame_address(0));
  return current->bits;
}
