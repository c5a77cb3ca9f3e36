// Metal's names for a compiler that checks and compiles nothing: declarations only, with address spaces as types.
//
// clang has Metal's address spaces under numbers. In C++ an object of a class cannot be copied out of one, so halves are
// scoped enumerations here: scalars that convert where a cast says so and have no arithmetic, which is the dialect's rule.
// The names are those of metal_candle/kernels/source/as_cuda.h, which a test compares: what only one has is not portable.

using int8_t = signed char;
using int16_t = short;
using int32_t = int;
using int64_t = long;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long;
using size_t = unsigned long;
using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned int;
using ulong = unsigned long;

#define EM_VECTORS(type, name) \
  typedef type name##2 __attribute__((ext_vector_type(2))); \
  typedef type name##3 __attribute__((ext_vector_type(3))); \
  typedef type name##4 __attribute__((ext_vector_type(4)));
EM_VECTORS(float, float)
EM_VECTORS(signed char, char)
EM_VECTORS(short, short)
EM_VECTORS(int, int)
EM_VECTORS(uchar, uchar)
EM_VECTORS(ushort, ushort)
EM_VECTORS(uint, uint)

enum class half : ushort {};
enum class bfloat : ushort {};
enum class complex64_t : ulong {};
using float16_t = half;
using bfloat16_t = bfloat;

#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.192092896e-07f
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")

#define MC_UNARY(name) float name(float x);
#define MC_BINARY(name) float name(float x, float y);
#define MC_FLOAT_MATH \
  MC_UNARY(tan) \
  MC_UNARY(asin) \
  MC_UNARY(acos) \
  MC_UNARY(atan) \
  MC_UNARY(sinh) \
  MC_UNARY(cosh) \
  MC_UNARY(tanh) \
  MC_UNARY(sqrt) \
  MC_UNARY(rsqrt) \
  MC_UNARY(floor) \
  MC_UNARY(ceil) \
  MC_UNARY(trunc) \
  MC_UNARY(rint) \
  MC_UNARY(round) \
  MC_UNARY(fabs) \
  MC_UNARY(abs) \
  MC_UNARY(exp) \
  MC_UNARY(exp2) \
  MC_UNARY(exp10) \
  MC_UNARY(log) \
  MC_UNARY(log2) \
  MC_UNARY(log10) \
  MC_UNARY(sin) \
  MC_UNARY(cos) \
  MC_BINARY(pow) \
  MC_BINARY(fmod) \
  MC_BINARY(atan2) \
  MC_BINARY(copysign) \
  MC_BINARY(fmin) \
  MC_BINARY(fmax) \
  MC_BINARY(min) \
  MC_BINARY(max)

namespace metal {

MC_FLOAT_MATH

namespace precise {
MC_FLOAT_MATH
}  // namespace precise

namespace fast {
MC_FLOAT_MATH
}  // namespace fast

int abs(int x);
int min(int x, int y);
int max(int x, int y);
uint min(uint x, uint y);
uint max(uint x, uint y);
float clamp(float x, float low, float high);
int clamp(int x, int low, int high);
uint clamp(uint x, uint low, uint high);
float fma(float x, float y, float z);
bool isnan(float x);
bool isinf(float x);
bool isfinite(float x);
template <typename T>
T select(T otherwise, T where, bool condition);

}  // namespace metal

enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };

constexpr mem_flags operator|(mem_flags one, mem_flags other) {
  return mem_flags(uint(one) | uint(other));
}

void threadgroup_barrier(mem_flags flags);
void simdgroup_barrier(mem_flags flags);

// Other types than these would be converted in silence: the template takes them, and is not there.
#define MC_SIMD(name, ...) \
  float name(float value, ##__VA_ARGS__); \
  int name(int value, ##__VA_ARGS__); \
  uint name(uint value, ##__VA_ARGS__); \
  template <typename T> \
  T name(T value, ##__VA_ARGS__) = delete;

MC_SIMD(simd_shuffle_xor, ushort mask)
MC_SIMD(simd_shuffle, ushort lane)
MC_SIMD(simd_shuffle_down, ushort by)
MC_SIMD(simd_shuffle_up, ushort by)
MC_SIMD(simd_broadcast, ushort lane)
MC_SIMD(simd_broadcast_first)
MC_SIMD(simd_sum)
MC_SIMD(simd_max)
MC_SIMD(simd_min)
bool simd_all(bool value);
bool simd_any(bool value);

// Threadgroup memory is static, or clang refuses an address space of a local variable. A pointer to it can thus not be
// declared with the word, only with `auto`: the dialect's rule too.
#define device __attribute__((address_space(1)))
#define constant __attribute__((address_space(2)))
#define thread
#define threadgroup static __attribute__((address_space(3)))
