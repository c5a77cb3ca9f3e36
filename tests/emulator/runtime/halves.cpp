// IEEE half and bfloat16 by their bits: not every machine this runs on converts them.
#include <string.h>

#include "interface.h"

static em_u32 bits_of(float value) {
  em_u32 bits;
  memcpy(&bits, &value, 4);
  return bits;
}

static float float_of(em_u32 bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// Drops the low `count` bits, to nearest even.
static em_u32 round_off(em_u32 bits, em_u32 count) {
  em_u32 half = 1u << (count - 1), rest = bits & ((1u << count) - 1), kept = bits >> count;
  return kept + (rest > half || (rest == half && (kept & 1)));
}

unsigned short em_half_of_float(float value) {
  em_u32 bits = bits_of(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return (unsigned short)(sign | 0x7e00u);
  if (magnitude >= 0x47800000u) return (unsigned short)(sign | 0x7c00u);  // 65536 and more
  em_u32 exponent = magnitude >> 23;
  if (exponent >= 113)  // normal; a carry out of the fraction is the next exponent, at last infinity
    return (unsigned short)(sign | round_off(magnitude - (112u << 23), 13));
  if (exponent < 102) return (unsigned short)sign;
  em_u32 fraction = (magnitude & 0x7fffffu) | 0x800000u;
  return (unsigned short)(sign | round_off(fraction, 126 - exponent));
}

float em_float_of_half(unsigned short bits) {
  em_u32 sign = (em_u32)(bits & 0x8000u) << 16, exponent = bits >> 10 & 31u, fraction = bits & 0x3ffu;
  if (exponent == 31) return float_of(sign | 0x7f800000u | fraction << 13);
  if (exponent) return float_of(sign | (exponent + 112) << 23 | fraction << 13);
  float small = (float)fraction * 0x1p-24f;  // exact
  return float_of(sign | bits_of(small));
}

unsigned short em_bfloat_of_float(float value) {
  em_u32 bits = bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (unsigned short)(bits >> 16 | 0x40u);
  return (unsigned short)round_off(bits, 16);
}
