// SPDX-License-Identifier: MIT
// Lanes for AVX2 + FMA + F16C. Included inside an unnamed namespace by kernels_avx2.cpp.
#pragma once

struct LanesF32 {
  using Scalar = float;
  using V = __m256;
  static constexpr size_t kWidth = 8;

  static V load(const float* p) { return _mm256_load_ps(p); }
  static void store(float* p, V a) { _mm256_store_ps(p, a); }
  static V broadcast(float s) { return _mm256_set1_ps(s); }
  static V mul(V a, V b) { return _mm256_mul_ps(a, b); }
  static V div(V a, V b) { return _mm256_div_ps(a, b); }
  static V fma(V w, V x, V acc) { return _mm256_fmadd_ps(w, x, acc); }
  static V fma_each(V a, V b, V c) { return fma(a, b, c); }
  static V add(V a, V b) { return _mm256_add_ps(a, b); }
  static V sub(V a, V b) { return _mm256_sub_ps(a, b); }
  static V min(V a, V b) { return _mm256_min_ps(a, b); }
  static V max(V a, V b) { return _mm256_max_ps(a, b); }
  static bool all_below(V a, V limit) {
    __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
    return _mm256_movemask_ps(_mm256_cmp_ps(magnitude, limit, _CMP_NLT_UQ)) == 0;
  }

  // Counts per lane, of 32 bits.
  using Count = __m256i;
  static Count no_count() { return _mm256_setzero_si256(); }
  template <bool kOrEqual>
  static Count count_above(Count c, V x, V limit) {
    return _mm256_sub_epi32(c, _mm256_castps_si256(_mm256_cmp_ps(x, limit, kOrEqual ? _CMP_GE_OQ : _CMP_GT_OQ)));
  }
  static uint32_t total(Count c) {
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(c), _mm256_extracti128_si256(c, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4E));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xB1))));
  }
  using Flag = __m256;
  static Flag no_flag() { return _mm256_setzero_ps(); }
  static Flag flag_nan(Flag f, V a, V b) { return _mm256_or_ps(f, _mm256_cmp_ps(a, b, _CMP_UNORD_Q)); }
  static bool flagged(Flag f) { return _mm256_movemask_ps(f) != 0; }
  static bool any_equal(V a, V b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)) != 0; }
  // p * 2^n, where t is n plus 1.5 * 2^23; p and the result must be normal numbers.
  static V scaled(V p, V t) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(t), 23)));
  }

  template <uint8_t kType>
  static V load_as(const char* p) {
    return load8<kType>(p);
  }
  template <uint8_t kType>
  static void store_as(char* p, V a) {
    V x = canonical8(a);
    if constexpr (kType == kF32) _mm256_storeu_ps(reinterpret_cast<float*>(p), x);
    if constexpr (kType == kF16) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
    }
    if constexpr (kType == kBF16) {
      __m256i bits = _mm256_castps_si256(x);
      __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
      // The canonical NaN 0x7FC00000 only gains 0x7FFF below its upper half: no special case.
      __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))), 16);
      __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
    }
  }
};

struct LanesF64 {
  using Scalar = double;
  using V = __m256d;
  static constexpr size_t kWidth = 4;

  static V load(const double* p) { return _mm256_load_pd(p); }
  static void store(double* p, V a) { _mm256_store_pd(p, a); }
  static V broadcast(double s) { return _mm256_set1_pd(s); }
  static V mul(V a, V b) { return _mm256_mul_pd(a, b); }
  static V div(V a, V b) { return _mm256_div_pd(a, b); }
  static V fma(V w, V x, V acc) { return _mm256_fmadd_pd(w, x, acc); }
  static V multiply_add(V a, V b, V c, bool /*exact*/) { return fma(a, b, c); }
  static V add(V a, V b) { return _mm256_add_pd(a, b); }
  static bool all_below(V a, V limit) {
    __m256d magnitude = _mm256_andnot_pd(_mm256_set1_pd(-0.0), a);
    return _mm256_movemask_pd(_mm256_cmp_pd(magnitude, limit, _CMP_NLT_UQ)) == 0;
  }

  template <uint8_t kType>
  static V load_as(const char* p) {
    if constexpr (kType == kF64) return _mm256_loadu_pd(reinterpret_cast<const double*>(p));
    return _mm256_cvtps_pd(load4<kType>(p));
  }
  template <uint8_t kType>
  static void store_as(char* p, V a) {
    V x = canonical4(a);
    if constexpr (kType == kF64) _mm256_storeu_pd(reinterpret_cast<double*>(p), x);
    if constexpr (kType == kF32) _mm_storeu_ps(reinterpret_cast<float*>(p), _mm256_cvtpd_ps(x));
    if constexpr (kType == kF16) {
      __m128 narrow = _mm256_cvtpd_ps(round4<10>(x, 0x1p-14, 0x1p20));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_cvtps_ph(narrow, _MM_FROUND_TO_NEAREST_INT));
    }
    if constexpr (kType == kBF16) {
      __m128i top = _mm_srli_epi32(_mm_castps_si128(_mm256_cvtpd_ps(round4<7>(x, 0x1p-126, 0x1p130))), 16);
      _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi32(top, top));
    }
  }
};

static inline void stream_copy(char* dst, const char* src, size_t bytes) {
  size_t i = 0;
  for (; i + 32 <= bytes; i += 32) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(dst + i),
                        _mm256_load_si256(reinterpret_cast<const __m256i*>(src + i)));
  }
  if (i < bytes) __builtin_memcpy(dst + i, src + i, bytes - i);
}
static inline void stream_fence() { _mm_sfence(); }
