// What the parts of the runtime share: the launch that runs, its fibres, and how a fault ends it.
#pragma once

#include "interface.h"

namespace em {

enum Wait : unsigned char { READY, AT_SIMD, AT_SIMD_BARRIER, AT_BARRIER, FINISHED, STOPPED };

// How often a thread passed each kind of barrier: what orders its accesses after others'.
struct Passed {
  em_u32 threadgroup[2];  // threadgroup barriers, by Memory
  em_u32 simdgroup[2];    // simdgroup barriers, by Memory
};

enum Memory { DEVICE = 0, THREADGROUP = 1 };  // by the bits of mem_flags

struct Fibre {
  void* stack_pointer;
  char* stack;
  em_thread thread;
  Passed passed;
  Wait wait;
  // Where it waits, or waited last.
  em_u32 line;
  const char* file;
  void* frame;   // of the runtime's function that the kernel called
  em_u64 place;  // a hash of the return addresses: tells two calls of one helper apart
  em_u32 flags;
  em_u32 operation, type, bits, operand, operations;
};

struct Launch {
  const em_request* request;
  em_report* report;
  void* const* arguments;
  char* object;          // where the kernel's object is mapped
  em_u32 threads;        // of a threadgroup
  em_u32 serial;         // of the threadgroup that runs: unique in the process
  em_u32 first_serial;   // of the launch's first
  const em_u32* order;   // of the threadgroups
  em_u32 group[3];
  // By what is not recorded since a read is pending:
  bool stopped;  // the threadgroup goes on until all its threads wait, and no further
  bool spent;    // and so does the launch, its patience being used up
};

// The first read of what nobody had written. It is told at the launch's end unless another thread turns out to write
// there unordered, which is a race, and depends on no order.
struct Pending {
  bool is;
  em_u32 serial;  // of the threadgroup that did so last
  char text[512];
  em_u64 place[EM_FRAMES];
};

extern Pending pending;
void keep_pending(void* frame, const char* text, ...) __attribute__((format(printf, 2, 3)));
void tell_pending();

extern Launch launch;
extern Fibre fibres[EM_MAX_THREADS];
extern Fibre* current;  // null while no fibre runs
extern volatile em_u64 switches;  // how often a fibre went on
extern volatile bool tired;       // the threadgroup used up the patience
extern volatile bool ended;       // without a fault: by SIGINT, or with a read pending
extern volatile bool busy;        // in the C library, which a signal must not leave for good

// Records the fault, the first one only, and leaves the fibre for the launcher; in the launcher it returns. A fault
// of a threadgroup whose read is pending may come of the value that was read: it is not recorded, and only stops the
// threadgroup.
// {0} in the text is where `frame`, that of the runtime's function, was called. Null where there is no such place.
void fail(const char* kind, void* frame, const char* text, ...) __attribute__((format(printf, 3, 4)));

// Fills a place of the report: by a return address of the kernel's as an offset into its object, or by where a fibre
// waits.
void set_place(em_u32 which, em_u64 return_offset);
void set_place(em_u32 which, const Fibre& waiting);

// "thread 5 of threadgroup 2", "threadgroup 2": in one of a few buffers that take turns.
const char* thread_name(em_u32 index, em_u32 serial);
const char* this_thread();
const char* group_name(em_u32 serial);

// Back to the launcher for good, from a fibre.
void leave_fibre();

// A hash of the return addresses from `frame` on, within the running fibre's stack.
em_u64 place_of(void* frame);

// The coordinates of a threadgroup by its index.
void locate_group(em_u32 index, em_u32* at);

void run_group();
void go_on();  // with the threadgroup, after a signal ended one of its threads
void mix_order(em_u32* order, em_u32 count, em_u32 how, em_u64 seed);
void compute_simd(Fibre* lanes);  // of a simdgroup all of whose lanes wait at the same operation
const char* operation_name(em_u32 operation);

inline em_u32 simdgroup_of(em_u32 thread) { return thread / EM_SIMD; }

}  // namespace em
