// SPDX-License-Identifier: MIT
// Scalar conversions between the element types: what one element means. Compiled for host and device alike, and by
// every ISA unit, hence force-inlined and free of std::.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#define SOUP_HD __host__ __device__ __forceinline__
#else
#define SOUP_HD inline __attribute__((always_inline))
#endif

namespace soup {

constexpr uint32_t kNanF32 = 0x7FC00000u;
constexpr uint64_t kNanF64 = 0x7FF8000000000000ull;
constexpr uint16_t kNanF16 = 0x7E00u;
constexpr uint16_t kNanBF16 = 0x7FC0u;
constexpr uint8_t kNanF8 = 0x7Fu;  // both f8 types: torch writes this one too

template <class To, class From>
SOUP_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

template <class T>
SOUP_HD T load_bits(const void* p) {
  T v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

// Widening: exact for every bit pattern, subnormals included.

SOUP_HD float bf16_to_f32(uint16_t b) { return bit_cast<float>(static_cast<uint32_t>(b) << 16); }

// Moves an (exponent, mantissa) pair to the top of an f32 and rescales by the difference of the biases; the product is
// exact, for subnormals of the small type too.
SOUP_HD float small_float_to_f32(uint32_t magnitude, int shift, uint32_t inf_bits, uint32_t bias_scale, bool negative) {
  uint32_t bits = magnitude << shift;
  float value = bits >= inf_bits ? bit_cast<float>(bits | 0x7F800000u)
                                 : bit_cast<float>(bits) * bit_cast<float>(bias_scale << 23);
  return bit_cast<float>(bit_cast<uint32_t>(value) | (negative ? 0x80000000u : 0u));
}

SOUP_HD float f16_to_f32(uint16_t h) {
  return small_float_to_f32(h & 0x7FFFu, 13, 0x7C00u << 13, 127 + 112, (h & 0x8000u) != 0);
}

SOUP_HD float f8e5m2_to_f32(uint8_t b) {
  return small_float_to_f32(b & 0x7Fu, 21, 0x7Cu << 21, 127 + 112, (b & 0x80u) != 0);
}

SOUP_HD float f8e4m3_to_f32(uint8_t b) {
  if ((b & 0x7Fu) == 0x7Fu) return bit_cast<float>(kNanF32);
  return small_float_to_f32(b & 0x7Fu, 20, 0x80u << 20, 127 + 120, (b & 0x80u) != 0);
}

// Narrowing: one rounding to nearest even, straight from f64.

// |x| rounded to `mantissa` explicit bits with smallest normal 2^min_exponent, by adding and subtracting a constant
// whose unit in the last place is the target's. `limit` is a power of two above the target's range: from there on the
// result only has to stay too large. Caller must handle NaN.
SOUP_HD double round_magnitude(double magnitude, int mantissa, double min_normal, double limit) {
  double clamped = magnitude < min_normal ? min_normal : (magnitude > limit ? limit : magnitude);
  double binade = bit_cast<double>(bit_cast<uint64_t>(clamped) & 0x7FF0000000000000ull);
  double magic = binade * (1.5 * static_cast<double>(1ull << (52 - mantissa)));
  return (magnitude + magic) - magic;
}

SOUP_HD uint16_t f64_to_bf16(double x) {
  if (x != x) return kNanBF16;
  uint64_t bits = bit_cast<uint64_t>(x);
  double r = round_magnitude(bit_cast<double>(bits & ~(1ull << 63)), 7, 0x1p-126, 0x1p130);
  uint32_t f = bit_cast<uint32_t>(static_cast<float>(r));  // exact, or infinite
  return static_cast<uint16_t>((f >> 16) | ((bits >> 48) & 0x8000u));
}

// The 16- and 8-bit types with a biased exponent above `mantissa` bits: r is already rounded and in range.
SOUP_HD uint32_t encode_rounded(double r, int mantissa, int bias, double min_normal, double inverse_min_subnormal) {
  if (r < min_normal) return static_cast<uint32_t>(r * inverse_min_subnormal);
  uint64_t top = bit_cast<uint64_t>(r) >> (52 - mantissa);
  return static_cast<uint32_t>(top - (static_cast<uint64_t>(1023 - bias) << mantissa));
}

SOUP_HD uint16_t f64_to_f16(double x) {
  if (x != x) return kNanF16;
  uint64_t bits = bit_cast<uint64_t>(x);
  uint32_t sign = static_cast<uint32_t>(bits >> 48) & 0x8000u;
  double r = round_magnitude(bit_cast<double>(bits & ~(1ull << 63)), 10, 0x1p-14, 0x1p20);
  if (r > 65504.0) return static_cast<uint16_t>(sign | 0x7C00u);
  return static_cast<uint16_t>(sign | encode_rounded(r, 10, 15, 0x1p-14, 0x1p24));
}

SOUP_HD uint8_t f64_to_f8e5m2(double x) {
  if (x != x) return kNanF8;
  uint64_t bits = bit_cast<uint64_t>(x);
  uint32_t sign = static_cast<uint32_t>(bits >> 56) & 0x80u;
  double r = round_magnitude(bit_cast<double>(bits & ~(1ull << 63)), 2, 0x1p-14, 0x1p20);
  if (r > 57344.0) return static_cast<uint8_t>(sign | 0x7Cu);
  return static_cast<uint8_t>(sign | encode_rounded(r, 2, 15, 0x1p-14, 0x1p16));
}

SOUP_HD uint8_t f64_to_f8e4m3(double x) {  // saturates: the type has no infinity
  if (x != x) return kNanF8;
  uint64_t bits = bit_cast<uint64_t>(x);
  uint32_t sign = static_cast<uint32_t>(bits >> 56) & 0x80u;
  double r = round_magnitude(bit_cast<double>(bits & ~(1ull << 63)), 3, 0x1p-6, 0x1p12);
  if (r > 448.0) r = 448.0;
  return static_cast<uint8_t>(sign | encode_rounded(r, 3, 7, 0x1p-6, 0x1p9));
}

SOUP_HD float fused_multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
SOUP_HD double fused_multiply_add(double a, double b, double c) { return __builtin_fma(a, b, c); }

SOUP_HD float f64_to_f32(double x) { return x != x ? bit_cast<float>(kNanF32) : static_cast<float>(x); }
SOUP_HD double canonical_f64(double x) { return x != x ? bit_cast<double>(kNanF64) : x; }

}  // namespace soup
