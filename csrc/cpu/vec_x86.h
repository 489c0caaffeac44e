// SPDX-License-Identifier: MIT
// 4 and 8 lanes on x86 with AVX2, FMA and F16C: the pieces that the AVX2 and the AVX-512 units share.
// Included inside an unnamed namespace by each of them. F16C conversions are exact and ignore flush-to-zero; the bf16
// conversion instructions (vcvtneps2bf16) flush subnormals and are therefore not used.
#pragma once

static inline __m128i widen_e4m3(__m128i bytes16) {
  // 8 e4m3 codes, zero-extended to 16 bits, as f16 bits of value / 256; NaN becomes an f16 NaN.
  __m128i magnitude = _mm_slli_epi16(_mm_and_si128(bytes16, _mm_set1_epi16(0x7F)), 7);
  __m128i nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7F << 7));
  magnitude = _mm_blendv_epi8(magnitude, _mm_set1_epi16(kNanF16), nan);
  return _mm_or_si128(magnitude, _mm_slli_epi16(_mm_and_si128(bytes16, _mm_set1_epi16(0x80)), 8));
}

template <uint8_t kType>
static inline __m256 load8(const char* p) {
  if constexpr (kType == kF32) return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
  if constexpr (kType == kF16) return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  if constexpr (kType == kBF16) {
    __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
  }
  __m128i wide = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  if constexpr (kType == kF8E5M2) return _mm256_cvtph_ps(_mm_slli_epi16(wide, 8));
  return _mm256_mul_ps(_mm256_cvtph_ps(widen_e4m3(wide)), _mm256_set1_ps(256.0f));
}

template <uint8_t kType>
static inline __m128 load4(const char* p) {
  if constexpr (kType == kF32) return _mm_loadu_ps(reinterpret_cast<const float*>(p));
  if constexpr (kType == kF16) return _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  if constexpr (kType == kBF16) {
    __m128i raw = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(raw), 16));
  }
  __m128i wide = _mm_cvtepu8_epi16(_mm_cvtsi32_si128(load_bits<int>(p)));
  if constexpr (kType == kF8E5M2) return _mm_cvtph_ps(_mm_slli_epi16(wide, 8));
  return _mm_mul_ps(_mm_cvtph_ps(widen_e4m3(wide)), _mm_set1_ps(256.0f));
}

// 4 doubles: |x| rounded to `kMantissa` bits as round_magnitude in scalar.h does it, sign restored.
template <int kMantissa>
static inline __m256d round4(__m256d x, double min_normal, double limit) {
  __m256d sign = _mm256_set1_pd(-0.0);
  __m256d magnitude = _mm256_andnot_pd(sign, x);
  __m256d clamped = _mm256_min_pd(_mm256_max_pd(magnitude, _mm256_set1_pd(min_normal)), _mm256_set1_pd(limit));
  __m256d exponent = _mm256_castsi256_pd(_mm256_set1_epi64x(0x7FF0000000000000ll));
  __m256d magic = _mm256_mul_pd(_mm256_and_pd(clamped, exponent),
                                _mm256_set1_pd(1.5 * static_cast<double>(1ull << (52 - kMantissa))));
  __m256d rounded = _mm256_sub_pd(_mm256_add_pd(magnitude, magic), magic);
  return _mm256_or_pd(rounded, _mm256_and_pd(x, sign));
}

static inline __m256 canonical8(__m256 x) {
  return _mm256_blendv_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(kNanF32)), _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

static inline __m256d canonical4(__m256d x) {
  return _mm256_blendv_pd(x, _mm256_castsi256_pd(_mm256_set1_epi64x(kNanF64)), _mm256_cmp_pd(x, x, _CMP_UNORD_Q));
}
