// Metal's scalar types.
#pragma once

#define EM_INLINE inline __attribute__((always_inline))

typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef __INT64_TYPE__ int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef __UINT64_TYPE__ uint64_t;
typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ptrdiff_t;
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef __UINT64_TYPE__ ulong;

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define HUGE_VALF __builtin_inff()
#define FLT_MAX __FLT_MAX__
#define FLT_MIN __FLT_MIN__
#define FLT_EPSILON __FLT_EPSILON__
#define HALF_MAX 65504.0f
#define M_PI_F 3.14159265358979323846f
#define M_E_F 2.71828182845904523536f
#define M_SQRT2_F 1.41421356237309504880f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.69314718055994530942f

// Two bytes that only convert, as the dialect has it: arithmetic is in float. The check pass refuses the rest.
struct half {
  half() = default;
  EM_INLINE explicit half(float value) : bits(em_half_of_float(value)) {}
  template <typename T>
  EM_INLINE explicit operator T() const {
    return T(em_float_of_half(bits));
  }
  unsigned short bits;
};

struct bfloat {
  bfloat() = default;
  EM_INLINE explicit bfloat(float value) : bits(em_bfloat_of_float(value)) {}
  template <typename T>
  EM_INLINE explicit operator T() const {
    unsigned wide = (unsigned)bits << 16;
    return T(__builtin_bit_cast(float, wide));
  }
  unsigned short bits;
};

typedef half float16_t;
typedef bfloat bfloat16_t;
