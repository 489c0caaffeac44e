// SPDX-License-Identifier: MIT
// Lanes for AVX-512 (F, BW, VL, DQ). Included inside an unnamed namespace by kernels_avx512.cpp, after vec_x86.h.
#pragma once

struct LanesF32 {
  using Scalar = float;
  using V = __m512;
  static constexpr size_t kWidth = 16;

  static V load(const float* p) { return _mm512_load_ps(p); }
  static void store(float* p, V a) { _mm512_store_ps(p, a); }
  static V broadcast(float s) { return _mm512_set1_ps(s); }
  static V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  static V div(V a, V b) { return _mm512_div_ps(a, b); }
  static V fma(V w, V x, V acc) { return _mm512_fmadd_ps(w, x, acc); }
  static V fma_each(V a, V b, V c) { return fma(a, b, c); }
  static V add(V a, V b) { return _mm512_add_ps(a, b); }
  static V sub(V a, V b) { return _mm512_sub_ps(a, b); }
  static V min(V a, V b) { return _mm512_min_ps(a, b); }
  static V max(V a, V b) { return _mm512_max_ps(a, b); }
  static bool all_below(V a, V limit) { return _mm512_cmp_ps_mask(_mm512_abs_ps(a), limit, _CMP_NLT_UQ) == 0; }

  // Counts per lane, of 32 bits.
  using Count = __m512i;
  static Count no_count() { return _mm512_setzero_si512(); }
  template <bool kOrEqual>
  static Count count_above(Count c, V x, V limit) {
    return _mm512_mask_add_epi32(c, _mm512_cmp_ps_mask(x, limit, kOrEqual ? _CMP_GE_OQ : _CMP_GT_OQ), c,
                                 _mm512_set1_epi32(1));
  }
  static uint32_t total(Count c) { return static_cast<uint32_t>(_mm512_reduce_add_epi32(c)); }
  using Flag = __mmask16;
  static Flag no_flag() { return 0; }
  static Flag flag_nan(Flag f, V a, V b) { return static_cast<Flag>(f | _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q)); }
  static bool flagged(Flag f) { return f != 0; }
  static bool any_equal(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ) != 0; }
  // p * 2^n, where t is n plus 1.5 * 2^23; p and the result must be normal numbers.
  static V scaled(V p, V t) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(t), 23)));
  }

  template <uint8_t kType>
  static V load_as(const char* p) {
    if constexpr (kType == kF32) return _mm512_loadu_ps(p);
    if constexpr (kType == kF16) return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    if constexpr (kType == kBF16) {
      __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
    }
    return _mm512_insertf32x8(_mm512_castps256_ps512(load8<kType>(p)), load8<kType>(p + 8), 1);
  }
  template <uint8_t kType>
  static void store_as(char* p, V a) {
    V x =
        _mm512_mask_mov_ps(a, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_castsi512_ps(_mm512_set1_epi32(kNanF32)));
    if constexpr (kType == kF32) _mm512_storeu_ps(p, x);
    if constexpr (kType == kF16) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
    }
    if constexpr (kType == kBF16) {
      __m512i bits = _mm512_castps_si512(x);
      __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
      // The canonical NaN 0x7FC00000 only gains 0x7FFF below its upper half: no special case.
      __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF))), 16);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
    }
  }
};

struct LanesF64 {
  using Scalar = double;
  using V = __m512d;
  static constexpr size_t kWidth = 8;

  static V load(const double* p) { return _mm512_load_pd(p); }
  static void store(double* p, V a) { _mm512_store_pd(p, a); }
  static V broadcast(double s) { return _mm512_set1_pd(s); }
  static V mul(V a, V b) { return _mm512_mul_pd(a, b); }
  static V div(V a, V b) { return _mm512_div_pd(a, b); }
  static V fma(V w, V x, V acc) { return _mm512_fmadd_pd(w, x, acc); }
  static V multiply_add(V a, V b, V c, bool /*exact*/) { return fma(a, b, c); }
  static V add(V a, V b) { return _mm512_add_pd(a, b); }
  static bool all_below(V a, V limit) { return _mm512_cmp_pd_mask(_mm512_abs_pd(a), limit, _CMP_NLT_UQ) == 0; }

  template <uint8_t kType>
  static V load_as(const char* p) {
    if constexpr (kType == kF64) return _mm512_loadu_pd(p);
    return _mm512_cvtps_pd(load8<kType>(p));
  }
  template <uint8_t kType>
  static void store_as(char* p, V a) {
    V x =
        _mm512_mask_mov_pd(a, _mm512_cmp_pd_mask(a, a, _CMP_UNORD_Q), _mm512_castsi512_pd(_mm512_set1_epi64(kNanF64)));
    if constexpr (kType == kF64) _mm512_storeu_pd(p, x);
    if constexpr (kType == kF32) _mm256_storeu_ps(reinterpret_cast<float*>(p), _mm512_cvtpd_ps(x));
    if constexpr (kType == kF16) {
      __m256 narrow = _mm512_cvtpd_ps(round8<10>(x, 0x1p-14, 0x1p20));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(narrow, _MM_FROUND_TO_NEAREST_INT));
    }
    if constexpr (kType == kBF16) {
      __m256i top = _mm256_srli_epi32(_mm256_castps_si256(_mm512_cvtpd_ps(round8<7>(x, 0x1p-126, 0x1p130))), 16);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtepi32_epi16(top));
    }
  }

 private:
  // round_magnitude of scalar.h on 8 lanes, sign restored.
  template <int kMantissa>
  static V round8(V x, double min_normal, double limit) {
    V sign = _mm512_set1_pd(-0.0);
    V magnitude = _mm512_andnot_pd(sign, x);
    V clamped = _mm512_min_pd(_mm512_max_pd(magnitude, _mm512_set1_pd(min_normal)), _mm512_set1_pd(limit));
    V exponent = _mm512_castsi512_pd(_mm512_set1_epi64(0x7FF0000000000000ll));
    V magic = _mm512_mul_pd(_mm512_and_pd(clamped, exponent),
                            _mm512_set1_pd(1.5 * static_cast<double>(1ull << (52 - kMantissa))));
    V rounded = _mm512_sub_pd(_mm512_add_pd(magnitude, magic), magic);
    return _mm512_or_pd(rounded, _mm512_and_pd(x, sign));
  }
};

static inline void stream_copy(char* dst, const char* src, size_t bytes) {
  size_t i = 0;
  for (; i + 64 <= bytes; i += 64) _mm512_stream_si512(reinterpret_cast<__m512i*>(dst + i), _mm512_load_si512(src + i));
  if (i < bytes) __builtin_memcpy(dst + i, src + i, bytes - i);
}
static inline void stream_fence() { _mm_sfence(); }
