// SPDX-License-Identifier: MIT
// Lanes for 64-bit Arm NEON. Included inside an unnamed namespace by kernels_neon.cpp.
#pragma once

template <uint8_t kType>
static inline float32x4_t load4(const char* p) {
  if constexpr (kType == kF32) return vreinterpretq_f32_u8(vld1q_u8(reinterpret_cast<const uint8_t*>(p)));
  if constexpr (kType == kF16) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(reinterpret_cast<const uint8_t*>(p))));
  }
  if constexpr (kType == kBF16) {
    uint16x4_t raw = vreinterpret_u16_u8(vld1_u8(reinterpret_cast<const uint8_t*>(p)));
    return vreinterpretq_f32_u32(vshll_n_u16(raw, 16));
  }
  uint16x4_t wide = vget_low_u16(vmovl_u8(vcreate_u8(load_bits<uint32_t>(p))));
  if constexpr (kType == kF8E5M2) return vcvt_f32_f16(vreinterpret_f16_u16(vshl_n_u16(wide, 8)));
  // e4m3: f16 bits of value / 256, NaN kept apart (see widen_e4m3 in vec_x86.h).
  uint16x4_t magnitude = vshl_n_u16(vand_u16(wide, vdup_n_u16(0x7F)), 7);
  uint16x4_t nan = vceq_u16(magnitude, vdup_n_u16(0x7F << 7));
  magnitude = vbsl_u16(nan, vdup_n_u16(kNanF16), magnitude);
  uint16x4_t half = vorr_u16(magnitude, vshl_n_u16(vand_u16(wide, vdup_n_u16(0x80)), 8));
  return vmulq_n_f32(vcvt_f32_f16(vreinterpret_f16_u16(half)), 256.0f);
}

// Two elements; f8 ones have no vector instruction.
template <uint8_t kType>
static inline float32x2_t load2(const char* p) {
  if constexpr (kType == kF32) return vreinterpret_f32_u8(vld1_u8(reinterpret_cast<const uint8_t*>(p)));
  if constexpr (kType == kF16 || kType == kBF16) {
    uint16x4_t raw = vcreate_u16(load_bits<uint32_t>(p));
    if constexpr (kType == kF16) return vget_low_f32(vcvt_f32_f16(vreinterpret_f16_u16(raw)));
    return vget_low_f32(vreinterpretq_f32_u32(vshll_n_u16(raw, 16)));
  }
  float32x2_t r = vdup_n_f32(element<float, kType>(p, 0));
  return vset_lane_f32(element<float, kType>(p, 1), r, 1);
}

struct LanesF32 {
  using Scalar = float;
  using V = float32x4_t;
  static constexpr size_t kWidth = 4;

  static V load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, V a) { vst1q_f32(p, a); }
  static V broadcast(float s) { return vdupq_n_f32(s); }
  static V mul(V a, V b) { return vmulq_f32(a, b); }
  static V div(V a, V b) { return vdivq_f32(a, b); }
  static V fma(V w, V x, V acc) { return vfmaq_f32(acc, w, x); }
  static V fma_each(V a, V b, V c) { return fma(a, b, c); }
  static V add(V a, V b) { return vaddq_f32(a, b); }
  static V sub(V a, V b) { return vsubq_f32(a, b); }
  static V min(V a, V b) { return vminq_f32(a, b); }
  static V max(V a, V b) { return vmaxq_f32(a, b); }
  static bool all_below(V a, V limit) { return vminvq_u32(vcltq_f32(vabsq_f32(a), limit)) != 0; }

  // Counts per lane, of 32 bits.
  using Count = uint32x4_t;
  static Count no_count() { return vdupq_n_u32(0); }
  template <bool kOrEqual>
  static Count count_above(Count c, V x, V limit) {
    return vsubq_u32(c, kOrEqual ? vcgeq_f32(x, limit) : vcgtq_f32(x, limit));
  }
  static uint32_t total(Count c) { return vaddvq_u32(c); }
  using Flag = uint32x4_t;  // all ones where every lane was a number
  static Flag no_flag() { return vdupq_n_u32(~0u); }
  static Flag flag_nan(Flag f, V a, V b) { return vandq_u32(f, vandq_u32(vceqq_f32(a, a), vceqq_f32(b, b))); }
  static bool flagged(Flag f) { return vminvq_u32(f) == 0; }
  static bool any_equal(V a, V b) { return vmaxvq_u32(vceqq_f32(a, b)) != 0; }
  // p * 2^n, where t is n plus 1.5 * 2^23; p and the result must be normal numbers.
  static V scaled(V p, V t) {
    return vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(p), vshlq_n_u32(vreinterpretq_u32_f32(t), 23)));
  }

  template <uint8_t kType>
  static V load_as(const char* p) {
    return load4<kType>(p);
  }
  template <uint8_t kType>
  static void store_as(char* p, V a) {
    V x = vbslq_f32(vceqq_f32(a, a), a, vreinterpretq_f32_u32(vdupq_n_u32(kNanF32)));
    if constexpr (kType == kF32) vst1q_u8(reinterpret_cast<uint8_t*>(p), vreinterpretq_u8_f32(x));
    if constexpr (kType == kF16) vst1_u8(reinterpret_cast<uint8_t*>(p), vreinterpret_u8_f16(vcvt_f16_f32(x)));
    if constexpr (kType == kBF16) {
      uint32x4_t bits = vreinterpretq_u32_f32(x);
      uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
      uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFFu)));
      vst1_u8(reinterpret_cast<uint8_t*>(p), vreinterpret_u8_u16(vshrn_n_u32(rounded, 16)));
    }
  }
};

struct LanesF64 {
  using Scalar = double;
  using V = float64x2_t;
  static constexpr size_t kWidth = 2;

  static V load(const double* p) { return vld1q_f64(p); }
  static void store(double* p, V a) { vst1q_f64(p, a); }
  static V broadcast(double s) { return vdupq_n_f64(s); }
  static V mul(V a, V b) { return vmulq_f64(a, b); }
  static V div(V a, V b) { return vdivq_f64(a, b); }
  static V fma(V w, V x, V acc) { return vfmaq_f64(acc, w, x); }
  static V multiply_add(V a, V b, V c, bool /*exact*/) { return fma(a, b, c); }
  static V add(V a, V b) { return vaddq_f64(a, b); }
  static bool all_below(V a, V limit) {
    uint64x2_t below = vcltq_f64(vabsq_f64(a), limit);
    return (vgetq_lane_u64(below, 0) & vgetq_lane_u64(below, 1)) != 0;
  }

  template <uint8_t kType>
  static V load_as(const char* p) {
    if constexpr (kType == kF64) return vreinterpretq_f64_u8(vld1q_u8(reinterpret_cast<const uint8_t*>(p)));
    return vcvt_f64_f32(load2<kType>(p));
  }
  template <uint8_t kType>
  static void store_as(char* p, V a) {
    V x = vbslq_f64(vceqq_f64(a, a), a, vreinterpretq_f64_u64(vdupq_n_u64(kNanF64)));
    if constexpr (kType == kF64) vst1q_u8(reinterpret_cast<uint8_t*>(p), vreinterpretq_u8_f64(x));
    if constexpr (kType == kF32) vst1_u8(reinterpret_cast<uint8_t*>(p), vreinterpret_u8_f32(vcvt_f32_f64(x)));
    for (size_t i = 0; i < kWidth; ++i) {
      double lane = i == 0 ? vgetq_lane_f64(x, 0) : vgetq_lane_f64(x, 1);
      if constexpr (kType == kF16) put(p, i, f64_to_f16(lane));
      if constexpr (kType == kBF16) put(p, i, f64_to_bf16(lane));
    }
  }
};

static inline void stream_copy(char* dst, const char* src, size_t bytes) { __builtin_memcpy(dst, src, bytes); }
static inline void stream_fence() {}
