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
  const char* thread = thread_name((em_u32)(current - fibres));
  if (const Region* near = region_near(address))
    return fail("bounds", frame, "%s %s %s {here}", thread, verb, describe(near, address));
  for (em_u32 i = 0; i < launch.threads; i++)
    if ((em_u64)(address - fibres[i].stack) < STACK)
      return fail("bounds", frame, "%s %s the private memory of thread %u {here}", thread, verb, i);
  const em_request* request = launch.request;
  long long offset = address - request->threadgroup_memory;
  if (request->threadgroup_bytes && offset > -(1 << 20) && offset < (1 << 20))
    return fail("bounds", frame, "%s %s byte %lld of threadgroup memory, which has %llu bytes {here}", thread, verb,
                offset, request->threadgroup_bytes);
  Dl_info object;
  if (dladdr(address, &object) && object.dli_fbase == launch.object) {
    if (!write) return;
    return fail("read-only", frame, "%s writes to a constant of the program {here}", thread);
  }
  fail("bounds", frame, "%s %s %u bytes at address %p, which is no buffer's {here}", thread, verb, bytes, address);
}

static void access_buffer(const Region* region, const char* address, em_u32 bytes, bool write, void* frame) {
  em_u64 offset = (em_u64)(address - region->begin);
  if (offset + bytes > region->bytes)
    return fail("bounds", frame, "%s %s %s {here}", thread_name((em_u32)(current - fibres)),
                write ? "writes" : "reads", describe(region, region->begin + region->bytes));
  if (region->buffer->role != EM_INPUT) return access_output(region, offset, bytes, write, frame);
  if (write)
    fail("read-only", frame, "%s writes to %s, an input {here}", thread_name((em_u32)(current - fibres)),
         describe(region, address));
}

static inline void access(const void* pointer, em_u32 bytes, bool write, void* frame) {
  if (!current) return;  // the object's own start
  const char* address = (const char*)pointer;
  if ((em_u64)(address - current->stack) <= STACK - bytes) return;
  const em_request* request = launch.request;
  em_u64 offset = (em_u64)(address - request->threadgroup_memory);
  if (offset < request->threadgroup_bytes && offset + bytes <= request->threadgroup_bytes)
    return access_threadgroup(offset, bytes, write, frame);
  if (const Region* region = region_of(address)) return access_buffer(region, address, bytes, write, frame);
  access_elsewhere(address, bytes, write, frame);
}

static inline void aligned_access(const void* pointer, em_u32 bytes, bool write, void* frame) {
  if ((em_u64)pointer % bytes && current)
    return fail("bounds", frame, "%s %s %u bytes at an address that is no multiple of it {here}",
                thread_name((em_u32)(current - fibres)), write ? "writes" : "reads", bytes);
  access(pointer, bytes, write, frame);
}

// A compiler's check that failed. Its data begin with the place: file, line, column.
struct Place {
  const char* file;
  em_u32 line, column;
};

static void undefined(const char* kind, const Place* place, const char* what) {
  if (!current) return;
  fail(kind, nullptr, "%s %s at line %u of the %s", thread_name((em_u32)(current - fibres)), what, place->line,
       place->file);
}

}  // namespace em

using namespace em;

#define FRAME __builtin_frame_address(0)
#define HOOKS(bytes)                                                                             \
  void __tsan_read##bytes(void* at) { aligned_access(at, bytes, false, FRAME); }                 \
  void __tsan_write##bytes(void* at) { aligned_access(at, bytes, true, FRAME); }                 \
  void __tsan_unaligned_read##bytes(void* at) { access(at, bytes, false, FRAME); }               \
  void __tsan_unaligned_write##bytes(void* at) { access(at, bytes, true, FRAME); }               \
  void __tsan_read_write##bytes(void* at) {                                                      \
    aligned_access(at, bytes, false, FRAME);                                                     \
    aligned_access(at, bytes, true, FRAME);                                                      \
  }                                                                                              \
  void __tsan_unaligned_read_write##bytes(void* at) {                                            \
    access(at, bytes, false, FRAME);                                                             \
    access(at, bytes, true, FRAME);                                                              \
  }

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
    access(from, (em_u32)bytes, false, FRAME);
    access(to, (em_u32)bytes, true, FRAME);
  }
  memmove(to, from, bytes);
}

void em_fill(void* to, int byte, em_u64 bytes) {
  if (launch.request && launch.request->checked && bytes) access(to, (em_u32)bytes, true, FRAME);
  memset(to, byte, bytes);
}

void* __tsan_memcpy(void* to, const void* from, em_u64 bytes) { return em_copy(to, from, bytes), to; }
void* __tsan_memmove(void* to, const void* from, em_u64 bytes) { return em_copy(to, from, bytes), to; }
void* __tsan_memset(void* to, int byte, em_u64 bytes) { return em_fill(to, byte, bytes), to; }

void __ubsan_handle_out_of_bounds(Place* place, em_u64) {
  undefined("bounds", place, "goes past the end of an array");
}
void __ubsan_handle_shift_out_of_bounds(Place* place, em_u64, em_u64) {
  undefined("arithmetic", place, "shifts by more than the value's bits");
}
void __ubsan_handle_divrem_overflow(Place* place, em_u64, em_u64) {
  undefined("arithmetic", place, "divides an integer by zero or overflows a division");
}
void __ubsan_handle_builtin_unreachable(Place* place) {
  undefined("memory", place, "comes to code that cannot be reached");
}
}
