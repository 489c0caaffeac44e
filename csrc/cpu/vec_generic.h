// SPDX-License-Identifier: MIT
// Lanes without intrinsics: the scalar oracle that every other ISA must equal, and the fallback everywhere.
// Included inside an unnamed namespace of its own by kernels_generic.cpp.
#pragma once

template <class T>
struct UnsignedOf;
template <>
struct UnsignedOf<float> {
  using Type = uint32_t;
};
template <>
struct UnsignedOf<double> {
  using Type = uint64_t;
};

template <class T>
struct GenericLanes {
  using Scalar = T;
  static constexpr size_t kWidth = 8;
  static constexpr int kFraction = sizeof(T) == 4 ? 23 : 52;
  struct V {
    T v[kWidth];
  };

  static V load(const T* p) {
    V r;
    __builtin_memcpy(r.v, p, sizeof(r.v));
    return r;
  }
  static void store(T* p, V a) { __builtin_memcpy(p, a.v, sizeof(a.v)); }
  static V broadcast(T s) {
    V r;
    for (size_t i = 0; i < kWidth; ++i) r.v[i] = s;
    return r;
  }
  static V mul(V a, V b) {
    for (size_t i = 0; i < kWidth; ++i) a.v[i] *= b.v[i];
    return a;
  }
  static V div(V a, V b) {
    for (size_t i = 0; i < kWidth; ++i) a.v[i] /= b.v[i];
    return a;
  }
  static V fma_each(V a, V b, V c) {
    for (size_t i = 0; i < kWidth; ++i) c.v[i] = fused_multiply_add(a.v[i], b.v[i], c.v[i]);
    return c;
  }
  // The same for a weight that is one in all lanes. With 1 it is a plain sum, where fma and addition agree; without
  // that a software fma would cost every element.
  static V fma(V w, V x, V acc) {
    if (w.v[0] == T(1)) {
      for (size_t i = 0; i < kWidth; ++i) acc.v[i] += x.v[i];
      return acc;
    }
    return fma_each(w, x, acc);
  }
  // a * b + c, rounded once. Where the caller knows the products to be exact, as those of two f32 are in f64, this does
  // without the software fma.
  static V multiply_add(V a, V b, V c, bool exact) { return exact ? add(mul(a, b), c) : fma_each(a, b, c); }
  static V add(V a, V b) {
    for (size_t i = 0; i < kWidth; ++i) a.v[i] += b.v[i];
    return a;
  }
  static V sub(V a, V b) {
    for (size_t i = 0; i < kWidth; ++i) a.v[i] -= b.v[i];
    return a;
  }
  static V min(V a, V b) {
    for (size_t i = 0; i < kWidth; ++i) a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
    return a;
  }
  static V max(V a, V b) {
    for (size_t i = 0; i < kWidth; ++i) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
  }
  static bool all_below(V a, V limit) {
    int below = 1;  // without branches, for the compiler's vectoriser
    for (size_t i = 0; i < kWidth; ++i) below &= (a.v[i] < limit.v[i]) & (a.v[i] > -limit.v[i]);
    return below != 0;
  }

  // Counts per lane, of 32 bits.
  struct Count {
    uint32_t v[kWidth];
  };
  static Count no_count() { return {}; }
  template <bool kOrEqual>
  static Count count_above(Count c, V x, V limit) {
    for (size_t i = 0; i < kWidth; ++i) c.v[i] += kOrEqual ? x.v[i] >= limit.v[i] : x.v[i] > limit.v[i];
    return c;
  }
  static uint32_t total(Count c) {
    uint32_t sum = 0;
    for (size_t i = 0; i < kWidth; ++i) sum += c.v[i];
    return sum;
  }
  using Flag = int;
  static Flag no_flag() { return 0; }
  static Flag flag_nan(Flag f, V a, V b) {
    for (size_t i = 0; i < kWidth; ++i) f |= (a.v[i] != a.v[i]) | (b.v[i] != b.v[i]);
    return f;
  }
  static bool flagged(Flag f) { return f != 0; }
  static bool any_equal(V a, V b) {
    int equal = 0;
    for (size_t i = 0; i < kWidth; ++i) equal |= a.v[i] == b.v[i];
    return equal != 0;
  }
  // p * 2^n, where t is n plus 1.5 * 2^23 (f64: 2^52); p and the result must be normal numbers.
  static V scaled(V p, V t) {
    using Bits = typename UnsignedOf<T>::Type;
    for (size_t i = 0; i < kWidth; ++i) {
      p.v[i] = bit_cast<T>(static_cast<Bits>(bit_cast<Bits>(p.v[i]) + (bit_cast<Bits>(t.v[i]) << kFraction)));
    }
    return p;
  }

  template <uint8_t kType>
  static V load_as(const char* p) {
    V r;
    for (size_t i = 0; i < kWidth; ++i) r.v[i] = static_cast<T>(element<T, kType>(p, i));
    return r;
  }
  template <uint8_t kType>
  static void store_as(char* p, V a) {
    for (size_t i = 0; i < kWidth; ++i) {
      double x = a.v[i];
      if constexpr (kType == kF64) put(p, i, canonical_f64(x));
      if constexpr (kType == kF32) put(p, i, f64_to_f32(x));
      if constexpr (kType == kF16) put(p, i, f64_to_f16(x));
      if constexpr (kType == kBF16) put(p, i, f64_to_bf16(x));
    }
  }
};

using LanesF32 = GenericLanes<float>;
using LanesF64 = GenericLanes<double>;

static inline void stream_copy(char* dst, const char* src, size_t bytes) { __builtin_memcpy(dst, src, bytes); }
static inline void stream_fence() {}
