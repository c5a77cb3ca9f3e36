// Metal's names in CUDA, as far as bodies may use them: what is missing here is not portable.
//
// MLX puts this text between its own includes (utils.cuh, cooperative_groups.h) and `namespace mlx::core::cu {`, where
// the kernel stands, and hands it to NVRTC with --device-as-default-execution-space.

using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned int;
using ulong = cuda::std::uint64_t;  // 64 bits in Metal; CUDA's `unsigned long` has 32 on Windows
using bfloat = __nv_bfloat16;       // `half` is CUDA's own
using float16_t = __half;
using bfloat16_t = __nv_bfloat16;

// NVRTC has no <cfloat> and no <cmath>.
#ifndef FLT_MAX
#define FLT_MAX 3.402823466e+38f
#endif
#ifndef FLT_MIN
#define FLT_MIN 1.175494351e-38f
#endif
#ifndef FLT_EPSILON
#define FLT_EPSILON 1.192092896e-07f
#endif
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#ifndef NAN
#define NAN __int_as_float(0x7fffffff)
#endif

// Math is for `float` (minimum, maximum, clamp and absolute value for `int` and `uint` too): CUDA has no unambiguous
// overloads for halves. There is no `using namespace metal`, since `exp` would then be CUDA's or ours: bodies say
// `metal::exp`.
#define MC_UNARY(name, call) \
  __device__ inline float name(float x) { \
    return call; \
  }
#define MC_BINARY(name, call) \
  __device__ inline float name(float x, float y) { \
    return call; \
  }
#define MC_FLOAT_MATH \
  MC_UNARY(tan, ::tanf(x)) \
  MC_UNARY(asin, ::asinf(x)) \
  MC_UNARY(acos, ::acosf(x)) \
  MC_UNARY(atan, ::atanf(x)) \
  MC_UNARY(sinh, ::sinhf(x)) \
  MC_UNARY(cosh, ::coshf(x)) \
  MC_UNARY(tanh, ::tanhf(x)) \
  MC_UNARY(sqrt, ::sqrtf(x)) \
  MC_UNARY(floor, ::floorf(x)) \
  MC_UNARY(ceil, ::ceilf(x)) \
  MC_UNARY(trunc, ::truncf(x)) \
  MC_UNARY(rint, ::rintf(x)) \
  MC_UNARY(round, ::roundf(x)) \
  MC_UNARY(fabs, ::fabsf(x)) \
  MC_UNARY(abs, ::fabsf(x)) \
  MC_UNARY(exp10, ::exp10f(x)) \
  MC_UNARY(log10, ::log10f(x)) \
  MC_BINARY(fmod, ::fmodf(x, y)) \
  MC_BINARY(atan2, ::atan2f(x, y)) \
  MC_BINARY(copysign, ::copysignf(x, y)) \
  MC_BINARY(fmin, ::fminf(x, y)) \
  MC_BINARY(fmax, ::fmaxf(x, y)) \
  MC_BINARY(min, ::fminf(x, y)) \
  MC_BINARY(max, ::fmaxf(x, y))
#define MC_EXACT_MATH \
  MC_UNARY(exp, ::expf(x)) \
  MC_UNARY(exp2, ::exp2f(x)) \
  MC_UNARY(log, ::logf(x)) \
  MC_UNARY(log2, ::log2f(x)) \
  MC_UNARY(sin, ::sinf(x)) \
  MC_UNARY(cos, ::cosf(x)) \
  MC_BINARY(pow, ::powf(x, y))

namespace metal {

MC_FLOAT_MATH
MC_EXACT_MATH
MC_UNARY(rsqrt, ::rsqrtf(x))

namespace precise {
MC_FLOAT_MATH
MC_EXACT_MATH
MC_UNARY(rsqrt, ::__frsqrt_rn(x))
}  // namespace precise

// CUDA's intrinsics where there is one: a few units in the last place for arguments of moderate size.
namespace fast {
MC_FLOAT_MATH
MC_UNARY(exp, ::__expf(x))
MC_UNARY(exp2, ::exp2f(x))
MC_UNARY(log, ::__logf(x))
MC_UNARY(log2, ::__log2f(x))
MC_UNARY(sin, ::__sinf(x))
MC_UNARY(cos, ::__cosf(x))
MC_BINARY(pow, ::__powf(x, y))
MC_UNARY(rsqrt, ::rsqrtf(x))
}  // namespace fast

__device__ inline int abs(int x) {
  return ::abs(x);
}
__device__ inline int min(int x, int y) {
  return x < y ? x : y;
}
__device__ inline int max(int x, int y) {
  return x < y ? y : x;
}
__device__ inline uint min(uint x, uint y) {
  return x < y ? x : y;
}
__device__ inline uint max(uint x, uint y) {
  return x < y ? y : x;
}
__device__ inline float clamp(float x, float low, float high) {
  return ::fminf(::fmaxf(x, low), high);
}
__device__ inline int clamp(int x, int low, int high) {
  return min(max(x, low), high);
}
__device__ inline uint clamp(uint x, uint low, uint high) {
  return min(max(x, low), high);
}
__device__ inline float fma(float x, float y, float z) {
  return ::fmaf(x, y, z);
}
__device__ inline bool isnan(float x) {
  return x != x;
}
__device__ inline bool isinf(float x) {
  return ::fabsf(x) == INFINITY;
}
__device__ inline bool isfinite(float x) {
  return ::fabsf(x) <= FLT_MAX;
}
// The second value where the condition holds: Metal's order, not that of `?:`.
template <typename T>
__device__ inline T select(T otherwise, T where, bool condition) {
  return condition ? where : otherwise;
}

}  // namespace metal

#undef MC_UNARY
#undef MC_BINARY
#undef MC_FLOAT_MATH
#undef MC_EXACT_MATH

enum class mem_flags : unsigned { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };

__device__ constexpr mem_flags operator|(mem_flags one, mem_flags other) {
  return mem_flags(unsigned(one) | unsigned(other));
}

// CUDA's barriers order both memories, whatever the flags.
__device__ inline void threadgroup_barrier(mem_flags) {
  __syncthreads();
}
__device__ inline void simdgroup_barrier(mem_flags) {
  __syncwarp();
}

// simdgroup operations. All 32 threads take part, as bodies have to see to: a warp that is not whole would hang.
constexpr unsigned MC_WHOLE = 0xffffffffu;

template <typename T>
__device__ inline T simd_shuffle_xor(T value, ushort mask) {
  static_assert(
      cuda::std::is_same_v<T, float> || cuda::std::is_same_v<T, int> || cuda::std::is_same_v<T, uint>,
      "simdgroup operations take float, int or uint");
  return __shfl_xor_sync(MC_WHOLE, value, mask);
}
template <typename T>
__device__ inline T simd_shuffle(T value, ushort lane) {
  return __shfl_sync(MC_WHOLE, value, lane);
}
// Where no such lane is Metal leaves the result undefined; here it is the thread's own value.
template <typename T>
__device__ inline T simd_shuffle_down(T value, ushort by) {
  return __shfl_down_sync(MC_WHOLE, value, by);
}
template <typename T>
__device__ inline T simd_shuffle_up(T value, ushort by) {
  return __shfl_up_sync(MC_WHOLE, value, by);
}
template <typename T>
__device__ inline T simd_broadcast(T value, ushort lane) {
  return __shfl_sync(MC_WHOLE, value, lane);
}
template <typename T>
__device__ inline T simd_broadcast_first(T value) {
  return __shfl_sync(MC_WHOLE, value, 0);
}

// Reductions by exchange, so that every thread has the same result, bit for bit.
template <typename T>
__device__ inline T simd_sum(T value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    value += simd_shuffle_xor(value, mask);
  }
  return value;
}
template <typename T>
__device__ inline T simd_max(T value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    value = metal::max(value, simd_shuffle_xor(value, mask));
  }
  return value;
}
template <typename T>
__device__ inline T simd_min(T value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    value = metal::min(value, simd_shuffle_xor(value, mask));
  }
  return value;
}
__device__ inline bool simd_all(bool value) {
  return __all_sync(MC_WHOLE, value);
}
__device__ inline bool simd_any(bool value) {
  return __any_sync(MC_WHOLE, value);
}

// Attributes, which are parameters in Metal. As expressions, so that what is not used costs nothing.
#define thread_position_in_threadgroup (uint3{threadIdx.x, threadIdx.y, threadIdx.z})
#define threadgroup_position_in_grid (uint3{blockIdx.x, blockIdx.y, blockIdx.z})
#define threads_per_threadgroup (uint3{blockDim.x, blockDim.y, blockDim.z})
#define threadgroups_per_grid (uint3{gridDim.x, gridDim.y, gridDim.z})
#define threads_per_grid \
  (uint3{gridDim.x * blockDim.x, gridDim.y * blockDim.y, gridDim.z * blockDim.z})
#define thread_position_in_grid \
  (uint3{blockIdx.x * blockDim.x + threadIdx.x, \
         blockIdx.y * blockDim.y + threadIdx.y, \
         blockIdx.z * blockDim.z + threadIdx.z})
#define thread_index_in_threadgroup \
  (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z))
#define threads_per_simdgroup 32u
#define thread_execution_width 32u
#define thread_index_in_simdgroup (thread_index_in_threadgroup % 32u)
#define simdgroup_index_in_threadgroup (thread_index_in_threadgroup / 32u)
#define simdgroups_per_threadgroup ((blockDim.x * blockDim.y * blockDim.z + 31u) / 32u)

// Four neighbours of a row in one access, which takes some telling here; see shared.h.
#define MC_FOURS

// Address spaces come last: CUDA spells `__device__` by way of the word `device`, so that above this line a function
// would become one for the host, without a message. `threadgroup` must be shared memory: were it nothing, each thread
// would have an array of its own, without a message either.
#define device
#define constant
#define thread
#define threadgroup __shared__
