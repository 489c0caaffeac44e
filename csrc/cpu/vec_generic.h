// SPDX-License-Identifier: MIT
// Lanes without intrinsics: the scalar oracle that every other ISA must equal, and the fallback everywhere.
// Included inside an unnamed namespace of its own by kernels_generic.cpp.
#pragma once

template <class T>
struct GenericLanes {
  using Scalar = T;
  static constexpr size_t kWidth = 8;
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
  // A weight of 1 is a plain sum, where fma and addition agree; without it a software fma would cost every element.
  static V fma(V w, V x, V acc) {
    if (w.v[0] == T(1)) {
      for (size_t i = 0; i < kWidth; ++i) acc.v[i] += x.v[i];
    } else {
      for (size_t i = 0; i < kWidth; ++i) acc.v[i] = fused(w.v[i], x.v[i], acc.v[i]);
    }
    return acc;
  }
  static bool all_below(V a, V limit) {
    int below = 1;  // without branches, for the compiler's vectoriser
    for (size_t i = 0; i < kWidth; ++i) below &= (a.v[i] < limit.v[i]) & (a.v[i] > -limit.v[i]);
    return below != 0;
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

 private:
  static float fused(float w, float x, float acc) { return __builtin_fmaf(w, x, acc); }
  static double fused(double w, double x, double acc) { return __builtin_fma(w, x, acc); }
};

using LanesF32 = GenericLanes<float>;
using LanesF64 = GenericLanes<double>;

static inline void stream_copy(char* dst, const char* src, size_t bytes) { __builtin_memcpy(dst, src, bytes); }
static inline void stream_fence() {}
