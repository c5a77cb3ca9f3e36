// Attributes, barriers and simdgroup operations. Each of the last two says where in the text it stands: all threads
// that take part must come to the same place.
#pragma once

#include "vectors.h"

// "used" keeps the compiler from reasoning that nobody but this thread can write it.
#ifdef __APPLE__
#define EM_SECTION __attribute__((used, section("__DATA,em_threadgroup")))
extern "C" char em_threadgroup_start __asm("section$start$__DATA$em_threadgroup");
extern "C" char em_threadgroup_stop __asm("section$end$__DATA$em_threadgroup");
#else
#define EM_SECTION __attribute__((used, section("em_threadgroup")))
extern "C" __attribute__((weak, visibility("hidden"))) char em_threadgroup_start __asm("__start_em_threadgroup");
extern "C" __attribute__((weak, visibility("hidden"))) char em_threadgroup_stop __asm("__stop_em_threadgroup");
#endif

// Unused bytes before each array, so that a step past one array's end is not a step into the next.
#ifdef __APPLE__
#define EM_GAP
#else
#define EM_JOINED(a, b) a##b
#define EM_JOIN(a, b) EM_JOINED(a, b)
#define EM_GAP \
  static EM_SECTION __attribute__((aligned(16))) unsigned char EM_JOIN(em_gap_, __COUNTER__)[EM_GAP_BYTES];
#define EM_GAP_BYTES 64
#endif

// Where the threadgroup memory of this kernel begins and ends; null without any.
extern "C" __attribute__((visibility("default"))) char* const em_threadgroup_range[2] = {&em_threadgroup_start,
                                                                                  &em_threadgroup_stop};

// memcpy and its like, which the compiler makes of copied structures, are checked by the runtime. Hidden and here, so
// that the kernel's calls end here and not in the C library.
extern "C" {
__attribute__((visibility("hidden"), used, no_sanitize("thread"))) void* memcpy(void* to, const void* from,
                                                                               size_t bytes) {
  em_copy(to, from, bytes);
  return to;
}
__attribute__((visibility("hidden"), used, no_sanitize("thread"))) void* memmove(void* to, const void* from,
                                                                                size_t bytes) {
  em_copy(to, from, bytes);
  return to;
}
__attribute__((visibility("hidden"), used, no_sanitize("thread"))) void* memset(void* to, int byte, size_t bytes) {
  em_fill(to, byte, bytes);
  return to;
}
}

namespace metal {

enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(uint(a) | uint(b)); }

#define EM_PLACE uint line = __builtin_LINE(), const char *file = __builtin_FILE()

EM_INLINE void threadgroup_barrier(mem_flags flags, EM_PLACE) { em_threadgroup_barrier(uint(flags), line, file); }
EM_INLINE void simdgroup_barrier(mem_flags flags, EM_PLACE) { em_simdgroup_barrier(uint(flags), line, file); }

// How each type travels: as 4 bytes, and as which of the runtime's types.
#define EM_TYPES(each) each(float, EM_FLOAT) each(int, EM_INT) each(uint, EM_UINT)
#define EM_CALL(type, code, operation, operand)                                                                  \
  __builtin_bit_cast(type, em_simd(operation, code, __builtin_bit_cast(uint, value), uint(operand), line, file))

#define EM_REDUCE(type, code)                                                                                       \
  EM_INLINE type simd_sum(type value, EM_PLACE) { return EM_CALL(type, code, EM_SUM, 0); }                          \
  EM_INLINE type simd_product(type value, EM_PLACE) { return EM_CALL(type, code, EM_PRODUCT, 0); }                  \
  EM_INLINE type simd_min(type value, EM_PLACE) { return EM_CALL(type, code, EM_MIN, 0); }                          \
  EM_INLINE type simd_max(type value, EM_PLACE) { return EM_CALL(type, code, EM_MAX, 0); }                          \
  EM_INLINE type simd_prefix_exclusive_sum(type value, EM_PLACE) {                                                  \
    return EM_CALL(type, code, EM_PREFIX_EXCLUSIVE_SUM, 0);                                                         \
  }                                                                                                                 \
  EM_INLINE type simd_prefix_inclusive_sum(type value, EM_PLACE) {                                                  \
    return EM_CALL(type, code, EM_PREFIX_INCLUSIVE_SUM, 0);                                                         \
  }                                                                                                                 \
  EM_INLINE type simd_prefix_exclusive_product(type value, EM_PLACE) {                                              \
    return EM_CALL(type, code, EM_PREFIX_EXCLUSIVE_PRODUCT, 0);                                                     \
  }                                                                                                                 \
  EM_INLINE type simd_prefix_inclusive_product(type value, EM_PLACE) {                                              \
    return EM_CALL(type, code, EM_PREFIX_INCLUSIVE_PRODUCT, 0);                                                     \
  }                                                                                                                 \
  EM_INLINE type simd_broadcast_first(type value, EM_PLACE) { return EM_CALL(type, code, EM_BROADCAST_FIRST, 0); }
EM_TYPES(EM_REDUCE)
#undef EM_REDUCE

#define EM_MOVE(type, code)                                                                                         \
  EM_INLINE type simd_shuffle(type value, ushort lane, EM_PLACE) { return EM_CALL(type, code, EM_SHUFFLE, lane); }  \
  EM_INLINE type simd_shuffle_xor(type value, ushort mask, EM_PLACE) {                                              \
    return EM_CALL(type, code, EM_SHUFFLE_XOR, mask);                                                               \
  }                                                                                                                 \
  EM_INLINE type simd_shuffle_up(type value, ushort delta, EM_PLACE) {                                              \
    return EM_CALL(type, code, EM_SHUFFLE_UP, delta);                                                               \
  }                                                                                                                 \
  EM_INLINE type simd_shuffle_down(type value, ushort delta, EM_PLACE) {                                            \
    return EM_CALL(type, code, EM_SHUFFLE_DOWN, delta);                                                             \
  }                                                                                                                 \
  EM_INLINE type simd_shuffle_rotate_up(type value, ushort delta, EM_PLACE) {                                       \
    return EM_CALL(type, code, EM_SHUFFLE_ROTATE_UP, delta);                                                        \
  }                                                                                                                 \
  EM_INLINE type simd_shuffle_rotate_down(type value, ushort delta, EM_PLACE) {                                     \
    return EM_CALL(type, code, EM_SHUFFLE_ROTATE_DOWN, delta);                                                      \
  }                                                                                                                 \
  EM_INLINE type simd_broadcast(type value, ushort lane, EM_PLACE) {                                                \
    return EM_CALL(type, code, EM_BROADCAST, lane);                                                                 \
  }
EM_TYPES(EM_MOVE)
#undef EM_MOVE

#define EM_LOGIC(type, code)                                                                            \
  EM_INLINE type simd_and(type value, EM_PLACE) { return EM_CALL(type, code, EM_AND, 0); }              \
  EM_INLINE type simd_or(type value, EM_PLACE) { return EM_CALL(type, code, EM_OR, 0); }                \
  EM_INLINE type simd_xor(type value, EM_PLACE) { return EM_CALL(type, code, EM_XOR, 0); }
EM_LOGIC(int, EM_INT)
EM_LOGIC(uint, EM_UINT)
#undef EM_LOGIC
#undef EM_CALL
#undef EM_TYPES

EM_INLINE bool simd_all(bool value, EM_PLACE) { return em_simd(EM_ALL, EM_UINT, value, 0, line, file); }
EM_INLINE bool simd_any(bool value, EM_PLACE) { return em_simd(EM_ANY, EM_UINT, value, 0, line, file); }

#undef EM_PLACE

}  // namespace metal

// The values of the attributes that MLX passes on, by their names. Launches have whole threadgroups only, so that
// dispatch_threads_per_threadgroup and its like equal the plain ones.
namespace em_attribute {

#define EM_TRIPLE(name, array) \
  EM_INLINE uint3 name(const em_thread& t) { return uint3{t.array[0], t.array[1], t.array[2]}; }
EM_TRIPLE(thread_position_in_threadgroup, position_in_group)
EM_TRIPLE(threadgroup_position_in_grid, group_position)
EM_TRIPLE(threads_per_threadgroup, group_size)
EM_TRIPLE(dispatch_threads_per_threadgroup, group_size)
EM_TRIPLE(threadgroups_per_grid, groups)
#undef EM_TRIPLE
EM_INLINE uint3 thread_position_in_grid(const em_thread& t) {
  return threadgroup_position_in_grid(t) * threads_per_threadgroup(t) + thread_position_in_threadgroup(t);
}
EM_INLINE uint3 threads_per_grid(const em_thread& t) { return threadgroups_per_grid(t) * threads_per_threadgroup(t); }
EM_INLINE uint3 grid_size(const em_thread& t) { return threads_per_grid(t); }
EM_INLINE uint3 grid_origin(const em_thread&) { return uint3{0, 0, 0}; }

EM_INLINE uint threads(const em_thread& t) { return t.group_size[0] * t.group_size[1] * t.group_size[2]; }
EM_INLINE uint thread_index_in_threadgroup(const em_thread& t) { return t.index_in_group; }
EM_INLINE uint thread_index_in_simdgroup(const em_thread& t) { return t.index_in_group % EM_SIMD; }
EM_INLINE uint simdgroup_index_in_threadgroup(const em_thread& t) { return t.index_in_group / EM_SIMD; }
EM_INLINE uint simdgroups_per_threadgroup(const em_thread& t) { return (threads(t) + EM_SIMD - 1) / EM_SIMD; }
EM_INLINE uint dispatch_simdgroups_per_threadgroup(const em_thread& t) { return simdgroups_per_threadgroup(t); }
EM_INLINE uint threads_per_simdgroup(const em_thread&) { return EM_SIMD; }
EM_INLINE uint thread_execution_width(const em_thread&) { return EM_SIMD; }
EM_INLINE uint thread_index_in_quadgroup(const em_thread& t) { return t.index_in_group % 4; }
EM_INLINE uint quadgroup_index_in_threadgroup(const em_thread& t) { return t.index_in_group / 4; }
EM_INLINE uint quadgroups_per_threadgroup(const em_thread& t) { return (threads(t) + 3) / 4; }
EM_INLINE uint dispatch_quadgroups_per_threadgroup(const em_thread& t) { return quadgroups_per_threadgroup(t); }

}  // namespace em_attribute
