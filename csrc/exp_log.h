// SPDX-License-Identifier: MIT
// exp and log1p without a library, so that every machine gets the same bits. Host and device, every ISA unit.
#pragma once

#include "scalar.h"

// For loops of a fixed length whose numbers are to be constants on a device; elsewhere compilers do it unasked.
#if defined(__CUDA_ARCH__)  // not in the host pass of nvcc, where the host compiler does not know the pragma
#define SOUP_UNROLL _Pragma("unroll")
#define SOUP_UNROLL_4 _Pragma("unroll 4")
#else
#define SOUP_UNROLL
#define SOUP_UNROLL_4
#endif

namespace soup {

// exp on lanes: 2^n * p(d - n ln 2), p of the least relative error on that interval (exchange algorithm; 3.1e-9 in f32
// with constants rounded) or Taylor's (2e-16 in f64).
template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float kLeast = -86.0f;  // the result is still normal
  static constexpr float kMagic = 0x1.8p23f;
  static constexpr float kLog2E = 1.4426950408889634f;
  static constexpr float kMinusLn2 = -0.6931471805599453f;
  static constexpr int kDegree = 6;
  static SOUP_HD float power(int i) {
    constexpr float powers[] = {
        1.0f, 1.0f, 0.499999934439f, 0.166665205736f, 0.0416683887296f, 0.00836872393598f, 0.00138145840312f};
    return powers[i];
  }
};
template <>
struct ExpConstants<double> {
  static constexpr double kLeast = -700.0;
  static constexpr double kMagic = 0x1.8p52;
  static constexpr double kLog2E = 1.4426950408889634;
  static constexpr double kMinusLn2 = -0.6931471805599453;
  static constexpr int kDegree = 12;
  static SOUP_HD double power(int i) {
    constexpr double powers[] = {
        1.0,        1.0,         1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,      1.0 / 720,
        1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600};
    return powers[i];
  }
};

// exp(d) for d <= 0, at least exp(kLeast); exactly 1 for 0. The relative error is below 2e-7 in f32, 1e-13 in f64.
template <class L>
SOUP_HD typename L::V exp_lanes(typename L::V d) {
  using K = ExpConstants<typename L::Scalar>;
  typename L::V magic = L::broadcast(K::kMagic);
  d = L::max(d, L::broadcast(K::kLeast));
  typename L::V t = L::fma_each(L::broadcast(K::kLog2E), d, magic);
  typename L::V r = L::fma_each(L::broadcast(K::kMinusLn2), L::sub(t, magic), d);
  typename L::V p = L::broadcast(K::power(K::kDegree));
  SOUP_UNROLL
  for (int i = K::kDegree - 1; i >= 0; --i) p = L::fma_each(p, r, L::broadcast(K::power(i)));
  return L::scaled(p, t);
}

// exp(d) for d <= 0: to 1e-12 relative, 0 below -700.
SOUP_HD double exp_of(double d) {
  using K = ExpConstants<double>;
  if (!(d >= K::kLeast)) return 0.0;
  double t = fused_multiply_add(K::kLog2E, d, K::kMagic);
  double r = fused_multiply_add(K::kMinusLn2, t - K::kMagic, d);
  double p = K::power(10);
  SOUP_UNROLL
  for (int i = 9; i >= 0; --i) p = fused_multiply_add(p, r, K::power(i));
  return bit_cast<double>(bit_cast<uint64_t>(p) + (bit_cast<uint64_t>(t) << 52));
}

// log(1 + x) for x >= 0, finite: to 1e-12 relative. With 1 + x = 2^k (1 + f) it is k ln 2 + 2 atanh(f / (2 + f)).
SOUP_HD double log1p_of(double x) {
  double f = x;
  double exponent = 0.0;
  if (x > 0.41) {
    uint64_t bits = bit_cast<uint64_t>(1.0 + x);
    uint64_t above = bits - bit_cast<uint64_t>(0x1.6A09E667F3BCDp-1);  // binades from sqrt(1/2) on
    exponent = static_cast<double>(above >> 52);
    f = bit_cast<double>(bits - (above >> 52 << 52)) - 1.0;
  }
  double s = f / (2.0 + f);
  double z = s * s;
  double sum = 1.0 / 17;
  SOUP_UNROLL
  for (int i = 15; i >= 1; i -= 2) sum = fused_multiply_add(sum, z, 1.0 / i);
  return fused_multiply_add(exponent, 0.6931471805599453, 2.0 * s * sum);
}

}  // namespace soup
