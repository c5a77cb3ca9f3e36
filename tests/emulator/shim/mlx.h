// Of the utilities that MLX puts in front of a kernel on Metal, what a body may use.
#pragma once

#include "math.h"

template <typename T>
struct Limits;

template <>
struct Limits<float> {
  static constexpr float max = __builtin_inff();
  static constexpr float min = -__builtin_inff();
  static constexpr float finite_max = __FLT_MAX__;
  static constexpr float finite_min = -__FLT_MAX__;
};

#define EM_LIMITS(type)                                                                       \
  template <>                                                                                 \
  struct Limits<type> {                                                                       \
    static constexpr type max = metal::numeric_limits<type>::max();                           \
    static constexpr type min = metal::numeric_limits<type>::min();                           \
    static constexpr type finite_max = metal::numeric_limits<type>::max();                    \
    static constexpr type finite_min = metal::numeric_limits<type>::min();                    \
  };
EM_LIMITS(int)
EM_LIMITS(uint)
#undef EM_LIMITS

template <typename T, typename U>
EM_INLINE T ceildiv(T count, U size) {
  return (count + size - 1) / size;
}

// The offset of element `index`, counted in row-major order, of an array of these strides.
template <typename Offset = int64_t, typename Index = uint, typename Shape, typename Strides>
EM_INLINE Offset elem_to_loc(Index index, Shape shape, Strides strides, int ndim) {
  Offset at = 0;
  for (int axis = ndim - 1; axis >= 0 && index > 0; axis--) {
    at += Offset(index % Index(shape[axis])) * Offset(strides[axis]);
    index /= Index(shape[axis]);
  }
  return at;
}

EM_INLINE float log1p(float x) { return __builtin_log1pf(x); }
EM_INLINE float expm1f(float x) { return __builtin_expm1f(x); }
