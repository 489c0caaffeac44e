// SPDX-License-Identifier: MIT
// Scalar conversions between the element types: what one element means. Compiled for host and device alike, and by
// every ISA unit, hence force-inlined and free of std::.
#pragma once

#include <stdint.h>

#include "host_device.h"

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
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(h));
  return value;
#else
  return small_float_to_f32(h & 0x7FFFu, 13, 0x7C00u << 13, 127 + 112, (h & 0x8000u) != 0);
#endif
}

// The upper byte of an f16.
SOUP_HD float f8e5m2_to_f32(uint8_t b) {
#if defined(__CUDA_ARCH__)
  return f16_to_f32(static_cast<uint16_t>(b << 8));
#else
  return small_float_to_f32(b & 0x7Fu, 21, 0x7Cu << 21, 127 + 112, (b & 0x80u) != 0);
#endif
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

// The same from f32, in fewer steps: what GPUs store with. number_to_*: of what is no NaN.

SOUP_HD uint32_t number_to_bf16(float x) {
  uint32_t bits = bit_cast<uint32_t>(x);
  return (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
}

// The code of a magnitude (the bits of an f32) in a type with `mantissa` bits below an exponent of that bias; at most
// `largest`.
SOUP_HD uint32_t encode_magnitude(uint32_t magnitude, int mantissa, int bias, uint32_t largest) {
  int shift = 23 - mantissa;
  uint32_t below = static_cast<uint32_t>(127 - bias) << 23;  // what the exponent loses
  uint32_t even = (1u << (shift - 1)) - 1 + ((magnitude >> shift) & 1u);
  uint32_t code = (magnitude + even - below) >> shift;
  // A sum whose unit in the last place is the smallest subnormal number: it rounds, and counts such units.
  float magic = bit_cast<float>(static_cast<uint32_t>(127 + 24 - bias - mantissa) << 23);
  uint32_t units = bit_cast<uint32_t>(bit_cast<float>(magnitude) + magic) - bit_cast<uint32_t>(magic);
  if (magnitude < below + (1u << 23)) code = units;
  return code < largest ? code : largest;
}

SOUP_HD uint32_t number_to_f16(float x) {
  uint32_t bits = bit_cast<uint32_t>(x);
  return encode_magnitude(bits & 0x7FFFFFFFu, 10, 15, 0x7C00u) | ((bits >> 16) & 0x8000u);
}

SOUP_HD uint32_t number_to_f8e5m2(float x) {
  uint32_t bits = bit_cast<uint32_t>(x);
  return encode_magnitude(bits & 0x7FFFFFFFu, 2, 15, 0x7Cu) | ((bits >> 24) & 0x80u);
}

SOUP_HD uint32_t number_to_f8e4m3(float x) {
  uint32_t bits = bit_cast<uint32_t>(x);
  return encode_magnitude(bits & 0x7FFFFFFFu, 3, 7, 0x7Eu) | ((bits >> 24) & 0x80u);
}

SOUP_HD uint16_t f32_to_bf16(float x) { return x != x ? kNanBF16 : static_cast<uint16_t>(number_to_bf16(x)); }
SOUP_HD uint16_t f32_to_f16(float x) { return x != x ? kNanF16 : static_cast<uint16_t>(number_to_f16(x)); }
SOUP_HD uint8_t f32_to_f8e5m2(float x) { return x != x ? kNanF8 : static_cast<uint8_t>(number_to_f8e5m2(x)); }
SOUP_HD uint8_t f32_to_f8e4m3(float x) { return x != x ? kNanF8 : static_cast<uint8_t>(number_to_f8e4m3(x)); }

// x cut to f32, with an odd last bit where anything was cut off. To round that once more, to 22 bits or fewer, is to
// round x once: ties and sides of ties are still told apart.
//
// The quick way is for normal numbers of f32 below a limit (the upper half of an f64's bits), and for less than 2^-140,
// which becomes 0 as in all smaller types; `done` is left alone if x is one of these, else made false.
constexpr uint32_t kBeyondF32 = 1151u << 20;
SOUP_HD float quick_odd_f32(double x, uint32_t limit, bool& done) {
  uint64_t bits = bit_cast<uint64_t>(x);
  uint32_t top = static_cast<uint32_t>(bits >> 32) & 0x7FFFFFFFu;
  uint32_t low = static_cast<uint32_t>(bits);
  uint32_t cut = (top << 3 | low >> 29) - (896u << 23);
  cut |= (low & 0x1FFFFFFFu) != 0 ? 1u : 0u;
  bool tiny = top < (883u << 20);
  done &= tiny | (top - (897u << 20) < limit - (897u << 20));
  return bit_cast<float>((tiny ? 0u : cut) | (static_cast<uint32_t>(bits >> 32) & 0x80000000u));
}

SOUP_HD float f64_to_odd_f32(double x) {
  bool done = true;
  float quick = quick_odd_f32(x, kBeyondF32, done);
  if (done) return quick;
  uint64_t bits = bit_cast<uint64_t>(x);
  uint64_t magnitude = bits & ~(1ull << 63);
  uint32_t cut = 0x7F7FFFFFu;  // beyond f32, and odd
  if (magnitude < 897ull << 52) {
    double units = bit_cast<double>(magnitude) * 0x1p149;
    cut = static_cast<uint32_t>(units);
    cut |= static_cast<double>(cut) != units ? 1u : 0u;
  } else if (magnitude >= 2047ull << 52) {
    cut = magnitude == 2047ull << 52 ? 0x7F800000u : kNanF32;
  }
  return bit_cast<float>(cut | (static_cast<uint32_t>(bits >> 32) & 0x80000000u));
}

SOUP_HD float fused_multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
SOUP_HD double fused_multiply_add(double a, double b, double c) { return __builtin_fma(a, b, c); }

SOUP_HD float signed_as(float x, float sign) {
  return bit_cast<float>(bit_cast<uint32_t>(x) | (bit_cast<uint32_t>(sign) & 0x80000000u));
}
SOUP_HD double signed_as(double x, double sign) {
  return bit_cast<double>(bit_cast<uint64_t>(x) | (bit_cast<uint64_t>(sign) & 0x8000000000000000ull));
}

// a / divisor without a division, for a divisor that has_quotients, by its reciprocal 1 / divisor (correctly rounded):
// the correctly rounded quotient, of the sign of a, where is_quotient says so.
//
// For an integer divisor one correction of the approximation is enough (divides_once). The remainder is exact, as it
// has few bits above the last one of the quotient; and a / divisor is no tie between normal numbers but 2^-20 of a last
// bit's half from any, which the error of the correction, 2^-22, does not bridge. Between subnormal numbers ties there
// are. A remainder of 0 would lose the sign of a zero.
//
// For any other, one brings the approximation to less than a last bit from the quotient, and the next makes it the
// nearest number, by Markstein's theorem (Handbook of Floating-Point Arithmetic, 2nd edition, theorem 4.8): its
// remainder is exact, and the reciprocal's relative error below half a last bit. Nothing of this may underflow, so
// quotients of least_quotient or more are certain: there the remainder's last bit is above the smallest subnormal.
constexpr double kLargestQuotient = 0x1p20;
SOUP_HD bool has_quotients(double divisor) { return divisor >= 1.0 / kLargestQuotient && divisor <= kLargestQuotient; }
SOUP_HD bool divides_once(double divisor) {
  return divisor >= 1.0 && divisor <= kLargestQuotient && divisor == static_cast<double>(static_cast<int32_t>(divisor));
}
SOUP_HD double least_quotient(bool of_f64, bool once) {
  return of_f64 ? (once ? 0x1p-1022 : 0x1p-900) : (once ? 0x1p-126 : 0x1p-80);
}
template <class T>
SOUP_HD T corrected(T near, T a, T divisor, T reciprocal) {
  T rest = fused_multiply_add(-divisor, near, a);
  return signed_as(fused_multiply_add(rest, reciprocal, near), a);
}
template <class T>
SOUP_HD T quotient(T a, T divisor, T reciprocal) {
  return corrected(a * reciprocal, a, divisor, reciprocal);
}
SOUP_HD bool is_quotient(float q, float least) { return !(__builtin_fabsf(q) < least) | (q == 0.0f); }
SOUP_HD bool is_quotient(double q, double least) { return !(__builtin_fabs(q) < least) | (q == 0.0); }

SOUP_HD float f64_to_f32(double x) { return x != x ? bit_cast<float>(kNanF32) : static_cast<float>(x); }
SOUP_HD double canonical_f64(double x) { return x != x ? bit_cast<double>(kNanF64) : x; }

}  // namespace soup
