// What instrumented code calls before each load and store, and where the compiler's own checks fail.
#include <dlfcn.h>
#include <string.h>

#include "fibre.h"
#include "shadow.h"
#include "state.h"

namespace em {

// Memory that is no buffer's: another thread's stack, the kernel's constants, or nobody's.
static void access_elsewhere(const char* address, em_u32 bytes, bool write, void* frame) {
  const char* verb = write ? "writes" : "reads";
  const char* thread = this_thread();
  const Region* near = region_near(address);
  if (near)
    return fail("bounds", frame, "%s %s %s {0}; %s", thread, verb, index_of(near, address), size_of(near));
  if (const char* below = below_zero(address, bytes, &near))
    return fail("bounds", frame, "%s %s %s {0}; %s", thread, verb, below, size_of(near));
  for (em_u32 i = 0; i < launch.threads; i++)
    if ((em_u64)(address - fibres[i].stack) < STACK)
      return fail("bounds", frame, "%s %s the private memory of thread %u {0}", thread, verb, i);
  const em_request* request = launch.request;
  long long offset = address - request->threadgroup_memory;
  // Constants lie in the same object, further away: in pages that cannot be written.
  if (request->threadgroup_bytes && offset > -4096 && offset < (long long)request->threadgroup_bytes + 4096)
    return access_threadgroup(offset, bytes, write, frame);
  Dl_info object;
  busy = true;
  bool of_kernel = dladdr(address, &object) && object.dli_fbase == launch.object;
  busy = false;
  if (ended) leave_fibre();
  if (of_kernel) {
    if (!write) return;
    return fail("read-only", frame, "%s writes to a constant of the program {0}", thread);
  }
  fail("bounds", frame, "%s %s %u bytes {0}; address %p is no buffer's", thread, verb, bytes, address);
}

static void access_buffer(Region* region, const char* address, em_u32 bytes, bool write, void* frame) {
  em_u64 offset = (em_u64)(address - region->begin);
  if (offset + bytes > region->bytes)
    return fail("bounds", frame, "%s %s %s {0}; %s", this_thread(), write ? "writes" : "reads",
                index_of(region, region->begin + region->bytes), size_of(region));
  if (region->buffer->role != EM_INPUT) return access_output(region, offset, bytes, write, frame);
  if (write)
    fail("read-only", frame, "%s writes %s {0}; %s is an input", this_thread(), index_of(region, address),
         region->buffer->name);
}

// `aligned`: the compiler takes the address for a multiple of the size, and so does a GPU.
static inline void access(const void* pointer, em_u32 bytes, bool write, void* frame, bool aligned) {
  if (!current) return;  // the object's own start
  const char* address = (const char*)pointer;
  if ((em_u64)(address - current->stack) <= STACK - bytes) return;
  if (aligned && (em_u64)address % bytes)
    return fail("bounds", frame, "%s %s %u bytes {0} at an address that is no multiple of %u", this_thread(),
                write ? "writes" : "reads", bytes, bytes);
  const em_request* request = launch.request;
  em_u64 offset = (em_u64)(address - request->threadgroup_memory);
  if (offset < request->threadgroup_bytes)
    return access_threadgroup((long long)offset, bytes, write, frame);
  if (Region* region = region_of(address)) return access_buffer(region, address, bytes, write, frame);
  access_elsewhere(address, bytes, write, frame);
}

// A compiler's check that failed. Its data begin with the place; of types it says by `width_and_sign` the bits, as a
// power of two, and whether they are signed.
struct Type {
  unsigned short kind, width_and_sign;
  char name[];
};

struct Check {
  const char* file;
  em_u32 line, column;
  const Type* types[2];
};

static long long number(const Type* type, em_u64 value) {
  em_u32 bits = 1u << (type->width_and_sign >> 1);
  if (bits > 64) return 0;  // behind a pointer; the language has no such type
  bool negative = type->width_and_sign & 1;
  return negative ? (long long)(value << (64 - bits)) >> (64 - bits) : (long long)value;
}

}  // namespace em

using namespace em;

#define FRAME __builtin_frame_address(0)
#define HOOKS(bytes)                                                                      \
  void __tsan_read##bytes(void* at) { access(at, bytes, false, FRAME, true); }            \
  void __tsan_write##bytes(void* at) { access(at, bytes, true, FRAME, true); }            \
  void __tsan_unaligned_read##bytes(void* at) { access(at, bytes, false, FRAME, false); } \
  void __tsan_unaligned_write##bytes(void* at) { access(at, bytes, true, FRAME, false); }

extern "C" {

HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

void em_copy(void* to, const void* from, em_u64 bytes) {
  if (launch.request && launch.request->checked && bytes) {
    access(from, (em_u32)bytes, false, FRAME, false);
    access(to, (em_u32)bytes, true, FRAME, false);
  }
  memmove(to, from, bytes);
}

void em_fill(void* to, int byte, em_u64 bytes) {
  if (launch.request && launch.request->checked && bytes) access(to, (em_u32)bytes, true, FRAME, false);
  memset(to, byte, bytes);
}

void* __tsan_memcpy(void* to, const void* from, em_u64 bytes) { return em_copy(to, from, bytes), to; }
void* __tsan_memmove(void* to, const void* from, em_u64 bytes) { return em_copy(to, from, bytes), to; }
void* __tsan_memset(void* to, int byte, em_u64 bytes) { return em_fill(to, byte, bytes), to; }

void __ubsan_handle_out_of_bounds(const Check* check, em_u64 index) {
  if (current)
    fail("bounds", nullptr, "%s goes past the ends of {=%s:%u:%u} at line %u of the %s: index %lld of %s",
         this_thread(), check->file, check->line, check->column, check->line, check->file,
         number(check->types[1], index), check->types[0]->name);
}

void __ubsan_handle_shift_out_of_bounds(const Check* check, em_u64, em_u64 by) {
  if (current)
    fail("arithmetic", nullptr, "%s shifts by more than the value has bits at line %u of the %s: %s by %lld",
         this_thread(), check->line, check->file, check->types[0]->name, number(check->types[1], by));
}

void __ubsan_handle_divrem_overflow(const Check* check, em_u64 dividend, em_u64) {
  if (current)
    fail("arithmetic", nullptr, "%s divides an integer by zero or overflows at line %u of the %s: %s %lld",
         this_thread(), check->line, check->file, check->types[0]->name, number(check->types[0], dividend));
}
}
