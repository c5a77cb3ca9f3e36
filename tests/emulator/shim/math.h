// metal::, metal::precise:: and metal::fast::. The last is as exact as the others here: what a GPU's loses shows there.
#pragma once

#include "numbers.h"

namespace metal {

#define EM_FUNCTION(name, builtin) \
  EM_INLINE float name(float x) { return builtin(x); }
#define EM_MATH                                                                    \
  EM_FUNCTION(abs, __builtin_fabsf)                                                \
  EM_FUNCTION(acos, __builtin_acosf)                                               \
  EM_FUNCTION(acosh, __builtin_acoshf)                                             \
  EM_FUNCTION(asin, __builtin_asinf)                                               \
  EM_FUNCTION(asinh, __builtin_asinhf)                                             \
  EM_FUNCTION(atan, __builtin_atanf)                                               \
  EM_FUNCTION(atanh, __builtin_atanhf)                                             \
  EM_FUNCTION(ceil, __builtin_ceilf)                                               \
  EM_FUNCTION(cos, __builtin_cosf)                                                 \
  EM_FUNCTION(cosh, __builtin_coshf)                                               \
  EM_FUNCTION(exp, __builtin_expf)                                                 \
  EM_FUNCTION(exp2, __builtin_exp2f)                                               \
  EM_FUNCTION(fabs, __builtin_fabsf)                                               \
  EM_FUNCTION(floor, __builtin_floorf)                                             \
  EM_FUNCTION(log, __builtin_logf)                                                 \
  EM_FUNCTION(log10, __builtin_log10f)                                             \
  EM_FUNCTION(log2, __builtin_log2f)                                               \
  EM_FUNCTION(rint, __builtin_rintf)                                               \
  EM_FUNCTION(round, __builtin_roundf)                                             \
  EM_FUNCTION(sin, __builtin_sinf)                                                 \
  EM_FUNCTION(sinh, __builtin_sinhf)                                               \
  EM_FUNCTION(sqrt, __builtin_sqrtf)                                               \
  EM_FUNCTION(tan, __builtin_tanf)                                                 \
  EM_FUNCTION(tanh, __builtin_tanhf)                                               \
  EM_FUNCTION(trunc, __builtin_truncf)                                             \
  EM_INLINE float exp10(float x) { return __builtin_powf(10.0f, x); }              \
  EM_INLINE float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }             \
  EM_INLINE float fract(float x) { return x - __builtin_floorf(x); }               \
  EM_INLINE float atan2(float y, float x) { return __builtin_atan2f(y, x); }       \
  EM_INLINE float fmod(float x, float y) { return __builtin_fmodf(x, y); }         \
  EM_INLINE float pow(float x, float y) { return __builtin_powf(x, y); }           \
  EM_INLINE float powr(float x, float y) { return __builtin_powf(x, y); }          \
  EM_INLINE float copysign(float x, float y) { return __builtin_copysignf(x, y); } \
  EM_INLINE float fmin(float x, float y) { return __builtin_fminf(x, y); }         \
  EM_INLINE float fmax(float x, float y) { return __builtin_fmaxf(x, y); }         \
  EM_INLINE float min(float x, float y) { return __builtin_fminf(x, y); }          \
  EM_INLINE float max(float x, float y) { return __builtin_fmaxf(x, y); }          \
  EM_INLINE float divide(float x, float y) { return x / y; }

EM_MATH
namespace precise {
EM_MATH
}
namespace fast {
EM_MATH
}
#undef EM_MATH
#undef EM_FUNCTION

EM_INLINE float fma(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
EM_INLINE float fdim(float x, float y) { return __builtin_fdimf(x, y); }
EM_INLINE float ldexp(float x, int y) { return __builtin_ldexpf(x, y); }
EM_INLINE int abs(int x) { return x < 0 ? -x : x; }

#define EM_ORDER(type)                                             \
  EM_INLINE type min(type x, type y) { return y < x ? y : x; }     \
  EM_INLINE type max(type x, type y) { return x < y ? y : x; }
EM_ORDER(int)
EM_ORDER(uint)
EM_ORDER(int64_t)
EM_ORDER(uint64_t)
#undef EM_ORDER

#define EM_CLAMP(type) \
  EM_INLINE type clamp(type x, type low, type high) { return min(max(x, low), high); }
EM_CLAMP(float)
EM_CLAMP(int)
EM_CLAMP(uint)
#undef EM_CLAMP

template <typename T>
EM_INLINE T select(T no, T yes, bool which) {
  return which ? yes : no;
}

EM_INLINE float saturate(float x) { return clamp(x, 0.0f, 1.0f); }
EM_INLINE float mix(float x, float y, float a) { return x + (y - x) * a; }
EM_INLINE float sign(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x != x ? 0.0f : x; }
EM_INLINE float step(float edge, float x) { return x < edge ? 0.0f : 1.0f; }
EM_INLINE bool isnan(float x) { return __builtin_isnan(x); }
EM_INLINE bool isinf(float x) { return __builtin_isinf(x); }
EM_INLINE bool isfinite(float x) { return __builtin_isfinite(x); }
EM_INLINE bool signbit(float x) { return __builtin_signbitf(x); }
EM_INLINE uint popcount(uint x) { return (uint)__builtin_popcount(x); }
EM_INLINE uint clz(uint x) { return x ? (uint)__builtin_clz(x) : 32u; }
EM_INLINE uint ctz(uint x) { return x ? (uint)__builtin_ctz(x) : 32u; }

template <typename To, typename From>
EM_INLINE To as_type(From value) {
  return __builtin_bit_cast(To, value);
}

template <typename T>
struct numeric_limits;

template <>
struct numeric_limits<float> {
  static constexpr float min() { return __FLT_MIN__; }
  static constexpr float max() { return __FLT_MAX__; }
  static constexpr float lowest() { return -__FLT_MAX__; }
  static constexpr float epsilon() { return __FLT_EPSILON__; }
  static constexpr float infinity() { return __builtin_inff(); }
  static constexpr float quiet_NaN() { return __builtin_nanf(""); }
};

template <>
struct numeric_limits<int> {
  static constexpr int min() { return -__INT_MAX__ - 1; }
  static constexpr int lowest() { return -__INT_MAX__ - 1; }
  static constexpr int max() { return __INT_MAX__; }
};

template <>
struct numeric_limits<uint> {
  static constexpr uint min() { return 0; }
  static constexpr uint lowest() { return 0; }
  static constexpr uint max() { return ~0u; }
};

}  // namespace metal
