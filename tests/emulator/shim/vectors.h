// Metal's vectors of 2, 3 and 4. Those of plain types are clang's own, with .xyzw, .rgba, [] and arithmetic; those of
// halves hold, convert and index, no more.
#pragma once

#include "numbers.h"

// Fast mode places a buffer's end against an unmapped page, whatever its start is aligned to.
#ifdef EM_FAST
#define EM_VECTOR(type, count) __attribute__((ext_vector_type(count), aligned(sizeof(type)))) type
#else
#define EM_VECTOR(type, count) __attribute__((ext_vector_type(count))) type
#endif

#define EM_VECTORS(type, name)              \
  typedef EM_VECTOR(type, 2) name##2; \
  typedef EM_VECTOR(type, 3) name##3; \
  typedef EM_VECTOR(type, 4) name##4;

EM_VECTORS(float, float)
EM_VECTORS(signed char, char)
EM_VECTORS(short, short)
EM_VECTORS(int, int)
EM_VECTORS(int64_t, long)
EM_VECTORS(uchar, uchar)
EM_VECTORS(ushort, ushort)
EM_VECTORS(uint, uint)
EM_VECTORS(ulong, ulong)
#undef EM_VECTORS
#undef EM_VECTOR

#ifdef EM_FAST
#define EM_ALIGNED(type, count) alignas(type)
#else
#define EM_ALIGNED(type, count) alignas((count) * sizeof(type))
#endif

#define EM_HALF_VECTORS(type)                                                             \
  struct EM_ALIGNED(type, 2) type##2 {                                                    \
    type##2() = default;                                                                  \
    EM_INLINE type##2(type x, type y) : x(x), y(y) {}                                     \
    EM_INLINE explicit type##2(float2 v) : x(v.x), y(v.y) {}                              \
    EM_INLINE explicit operator float2() const { return float2{float(x), float(y)}; }     \
    EM_INLINE type& operator[](int i) { return (&x)[i]; }                                 \
    EM_INLINE const type& operator[](int i) const { return (&x)[i]; }                     \
    type x, y;                                                                            \
  };                                                                                      \
  struct EM_ALIGNED(type, 4) type##4 {                                                    \
    type##4() = default;                                                                  \
    EM_INLINE type##4(type x, type y, type z, type w) : x(x), y(y), z(z), w(w) {}         \
    EM_INLINE explicit type##4(float4 v) : x(v.x), y(v.y), z(v.z), w(v.w) {}              \
    EM_INLINE explicit operator float4() const {                                          \
      return float4{float(x), float(y), float(z), float(w)};                              \
    }                                                                                     \
    EM_INLINE type& operator[](int i) { return (&x)[i]; }                                 \
    EM_INLINE const type& operator[](int i) const { return (&x)[i]; }                     \
    type x, y, z, w;                                                                      \
  };
EM_HALF_VECTORS(half)
EM_HALF_VECTORS(bfloat)
#undef EM_HALF_VECTORS
#undef EM_ALIGNED
