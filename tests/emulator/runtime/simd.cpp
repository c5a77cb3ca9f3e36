// The simdgroup operations, computed for all lanes at once when the last has come.
#include <string.h>

#include "state.h"

namespace em {

static const char* const NAMES[EM_OPERATIONS] = {
    "simd_sum", "simd_product", "simd_min", "simd_max", "simd_and", "simd_or", "simd_xor", "simd_all", "simd_any",
    "simd_ballot", "simd_prefix_exclusive_sum", "simd_prefix_inclusive_sum", "simd_prefix_exclusive_product",
    "simd_prefix_inclusive_product", "simd_shuffle", "simd_shuffle_xor", "simd_shuffle_up", "simd_shuffle_down",
    "simd_shuffle_rotate_up", "simd_shuffle_rotate_down", "simd_broadcast", "simd_broadcast_first"};

const char* operation_name(em_u32 operation) { return NAMES[operation]; }

template <typename T>
static T value_of(em_u32 bits) {
  T value;
  memcpy(&value, &bits, 4);
  return value;
}

template <typename T>
static em_u32 bits_of(T value) {
  em_u32 bits;
  memcpy(&bits, &value, 4);
  return bits;
}

template <typename T>
static T combine(em_u32 operation, T a, T b) {
  switch (operation) {
    case EM_SUM:
    case EM_PREFIX_EXCLUSIVE_SUM:
    case EM_PREFIX_INCLUSIVE_SUM:
      return a + b;
    case EM_PRODUCT:
    case EM_PREFIX_EXCLUSIVE_PRODUCT:
    case EM_PREFIX_INCLUSIVE_PRODUCT:
      return a * b;
    // As fmin and fmax: a NaN gives way to the other.
    case EM_MIN:
      return b != b || a < b ? a : b;
    default:
      return b != b || a > b ? a : b;
  }
}

// A tree by xor of the lane's number, as CUDA's spelling has it; Metal leaves the order open.
template <typename T>
static void reduce(em_u32 operation, T* values) {
  for (em_u32 mask = EM_SIMD / 2; mask; mask /= 2) {
    T before[EM_SIMD];
    memcpy(before, values, sizeof before);
    for (em_u32 lane = 0; lane < EM_SIMD; lane++)
      values[lane] = combine(operation, before[lane], before[lane ^ mask]);
  }
}

template <typename T>
static void prefix(em_u32 operation, T* values) {
  bool product = operation == EM_PREFIX_EXCLUSIVE_PRODUCT || operation == EM_PREFIX_INCLUSIVE_PRODUCT;
  bool inclusive = operation == EM_PREFIX_INCLUSIVE_SUM || operation == EM_PREFIX_INCLUSIVE_PRODUCT;
  T total = product ? 1 : 0;
  for (em_u32 lane = 0; lane < EM_SIMD; lane++) {
    T before = total;
    total = combine(operation, total, values[lane]);
    values[lane] = inclusive ? total : before;
  }
}

template <typename T>
static void arithmetic(em_u32 operation, Fibre* lanes) {
  T values[EM_SIMD];
  for (em_u32 lane = 0; lane < EM_SIMD; lane++) values[lane] = value_of<T>(lanes[lane].bits);
  if (operation >= EM_PREFIX_EXCLUSIVE_SUM)
    prefix(operation, values);
  else
    reduce(operation, values);
  for (em_u32 lane = 0; lane < EM_SIMD; lane++) lanes[lane].bits = bits_of(values[lane]);
}

static void logic(em_u32 operation, Fibre* lanes) {
  em_u32 all = lanes[0].bits, some = 0, odd = 0, ballot = 0;
  for (em_u32 lane = 0; lane < EM_SIMD; lane++) {
    em_u32 bits = lanes[lane].bits;
    all &= bits, some |= bits, odd ^= bits;
    ballot |= (em_u32)(bits != 0) << lane;
  }
  em_u32 result = operation == EM_AND   ? all
                  : operation == EM_OR  ? some
                  : operation == EM_XOR ? odd
                  : operation == EM_ALL ? ballot == ~0u
                  : operation == EM_ANY ? ballot != 0
                                        : ballot;
  for (em_u32 lane = 0; lane < EM_SIMD; lane++) lanes[lane].bits = result;
}

// The lane whose value `lane` gets. Past the simdgroup's ends Metal leaves the value undefined: EM_SIMD says so.
static em_u32 source_of(em_u32 operation, em_u32 lane, em_u32 operand) {
  switch (operation) {
    case EM_SHUFFLE:
    case EM_BROADCAST:
      return operand < EM_SIMD ? operand : (em_u32)EM_SIMD;
    case EM_SHUFFLE_XOR:
      return operand < EM_SIMD ? lane ^ operand : (em_u32)EM_SIMD;
    case EM_SHUFFLE_UP:
      return lane >= operand ? lane - operand : (em_u32)EM_SIMD;
    case EM_SHUFFLE_DOWN:
      return operand < EM_SIMD - lane ? lane + operand : (em_u32)EM_SIMD;
    case EM_SHUFFLE_ROTATE_UP:
      return (lane - operand) % EM_SIMD;
    case EM_SHUFFLE_ROTATE_DOWN:
      return (lane + operand) % EM_SIMD;
    default:
      return 0;
  }
}

static void move(em_u32 operation, Fibre* lanes) {
  em_u32 before[EM_SIMD];
  for (em_u32 lane = 0; lane < EM_SIMD; lane++) before[lane] = lanes[lane].bits;
  for (em_u32 lane = 0; lane < EM_SIMD; lane++) {
    em_u32 from = source_of(operation, lane, lanes[lane].operand);
    // What is undefined is a NaN here, so that a kernel which uses it shows.
    lanes[lane].bits = from < EM_SIMD ? before[from] : 0x7fff7fffu;
  }
}

void compute_simd(Fibre* lanes) {
  em_u32 operation = lanes[0].operation;
  if (operation >= EM_SHUFFLE)
    move(operation, lanes);
  else if (operation >= EM_AND && operation <= EM_BALLOT)
    logic(operation, lanes);
  else if (lanes[0].type == EM_FLOAT)
    arithmetic<float>(operation, lanes);
  else if (lanes[0].type == EM_INT)
    arithmetic<int>(operation, lanes);
  else
    arithmetic<em_u32>(operation, lanes);
}

}  // namespace em
