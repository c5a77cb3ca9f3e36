// What the compiled kernel, the runtime and Python's side tell one another. Plain data: Python mirrors it by ctypes.
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

typedef unsigned int em_u32;
typedef unsigned long long em_u64;

enum { EM_SIMD = 32, EM_MAX_THREADS = 1024, EM_PLACES = 4, EM_FRAMES = 8 };

// Where a thread stands in the grid. The values of MSL's attributes are computed from it.
typedef struct {
  em_u32 group_position[3];
  em_u32 position_in_group[3];
  em_u32 group_size[3];
  em_u32 groups[3];
  em_u32 index_in_group;
} em_thread;

typedef void em_entry(void* const* arguments, const em_thread* thread);

// What a kernel's arguments point at.
enum { EM_INPUT = 0, EM_OUTPUT = 1, EM_UNUSED_OUTPUT = 2 };
typedef struct {
  const char* name;
  void* data;       // copied in before the launch, and back after it where it is an output
  em_u64 bytes;
  em_u64 first;     // bytes before the element that the kernel's argument points at: those of negative strides
  em_u32 element;   // bytes of one element
  em_u32 role;
  em_u32 lies;      // bytes by which it lies after a multiple of 16, as it would on a GPU
} em_buffer;

// An array of threadgroup memory. What lies between two is nobody's.
typedef struct {
  const char* name;
  em_u32 offset;
  em_u32 bytes;
  em_u32 element;  // bytes of one element, 0 if the text does not tell
} em_span;

enum { EM_FORWARD = 0, EM_BACKWARD = 1, EM_SHUFFLED = 2 };
typedef struct {
  em_entry* entry;
  char* threadgroup_memory;
  em_u64 threadgroup_bytes;
  const em_span* spans;
  const em_buffer* buffers;
  em_u32 span_count;
  em_u32 buffer_count;
  em_u32 groups[3];
  em_u32 group_size[3];
  em_u32 order;
  em_u32 checked;
  em_u32 padded;         // structures of the text may have bytes that are no member's
  em_u32 interruptible;  // SIGINT ends the launch
  em_u64 seed;
  double patience;  // seconds of processor time for a threadgroup
} em_request;

// What went wrong. `text` may hold {0}, {1} and so on, or {0|line 3 of the body}: the places whose return addresses,
// innermost first and as offsets into the kernel's object, `places` holds, and what to say if no lines are found.
// {=body:3:8} is for the name that stands there in the text.
typedef struct {
  em_u32 failed;
  em_u32 interrupted;  // by SIGINT before it was through; then nothing else is told
  char kind[20];
  char text[2020];
  em_u64 places[EM_PLACES][EM_FRAMES];
} em_report;

void em_launch(const em_request* request, em_report* report);

// Called by the kernel. `flags` are those of mem_flags: 1 device, 2 threadgroup.
__attribute__((convergent)) void em_threadgroup_barrier(em_u32 flags, em_u32 line, const char* file);
__attribute__((convergent)) void em_simdgroup_barrier(em_u32 flags, em_u32 line, const char* file);

// A simdgroup operation on 4-byte values: `bits` of every lane in, those of this lane's result out. `operand` is the
// lane, the distance or the mask that a shuffle takes.
enum { EM_FLOAT = 0, EM_INT = 1, EM_UINT = 2 };
enum em_operation {
  EM_SUM, EM_PRODUCT, EM_MIN, EM_MAX, EM_AND, EM_OR, EM_XOR, EM_ALL, EM_ANY, EM_BALLOT,
  EM_PREFIX_EXCLUSIVE_SUM, EM_PREFIX_INCLUSIVE_SUM, EM_PREFIX_EXCLUSIVE_PRODUCT, EM_PREFIX_INCLUSIVE_PRODUCT,
  EM_SHUFFLE, EM_SHUFFLE_XOR, EM_SHUFFLE_UP, EM_SHUFFLE_DOWN, EM_SHUFFLE_ROTATE_UP, EM_SHUFFLE_ROTATE_DOWN,
  EM_BROADCAST, EM_BROADCAST_FIRST, EM_OPERATIONS
};
__attribute__((convergent)) em_u32 em_simd(em_u32 operation, em_u32 type, em_u32 bits, em_u32 operand, em_u32 line,
                                           const char* file);

// IEEE half and bfloat16, rounded to nearest even.
unsigned short em_half_of_float(float value);
float em_float_of_half(unsigned short bits);
unsigned short em_bfloat_of_float(float value);

// memcpy, memmove and memset of a kernel's text, checked as one access each.
void em_copy(void* to, const void* from, em_u64 bytes);
void em_fill(void* to, int byte, em_u64 bytes);

#ifdef __cplusplus
}
#endif
