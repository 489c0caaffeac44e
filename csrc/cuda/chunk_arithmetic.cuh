// SPDX-License-Identifier: MIT
// What weighted sums do to a chunk in registers: unpack and accumulate, divide, round, pack. Arrays are indexed by
// constants only, once unrolled: they stay in registers.
#pragma once

#include "words.cuh"

namespace soup {
namespace device {

template <uint8_t kType>
constexpr uint32_t kSizeOf = static_cast<uint32_t>(item_size(kType));

// Element j of a chunk.
template <class T, uint8_t kType, int kWords>
__device__ __forceinline__ T unpacked(const Words<kWords>& words, int j) {
  if constexpr (kType == kF64) {
    return static_cast<T>(
        bit_cast<double>(static_cast<uint64_t>(words.at[2 * j + 1]) << 32 | static_cast<uint64_t>(words.at[2 * j])));
  } else if constexpr (kType == kF32) {
    return bit_cast<float>(words.at[j]);
  } else if constexpr (kType == kBF16) {
    uint32_t word = words.at[j / 2];
    return bit_cast<float>(j % 2 == 0 ? word << 16 : word & 0xFFFF0000u);
  } else if constexpr (kType == kF16) {
    return f16_to_f32(static_cast<uint16_t>(words.at[j / 2] >> 16 * (j % 2)));
  } else {
    uint8_t byte = static_cast<uint8_t>(words.at[j / 4] >> 8 * (j % 4));
    return kType == kF8E4M3 ? f8e4m3_to_f32(byte) : f8e5m2_to_f32(byte);
  }
}

template <uint8_t kType, class T, int kUnroll, int kChunk, int kWords>
__device__ __forceinline__ void add(T (&acc)[kUnroll][kChunk], const Words<kWords> (&words)[kUnroll], T weight) {
  if constexpr (kChunk * kSizeOf<kType> <= 4 * kWords && (kType != kF64 || sizeof(T) == 8)) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int j = 0; j < kChunk; ++j) {
        acc[u][j] = fused_multiply_add(weight, unpacked<T, kType>(words[u], j), acc[u][j]);
      }
    }
  }
}

// The same chunks of one source.
template <class T, int kUnroll, int kChunk, int kWords>
__device__ __forceinline__ void add_any(T (&acc)[kUnroll][kChunk], const Words<kWords> (&words)[kUnroll], T weight,
                                        uint8_t dtype) {
  switch (dtype) {
    case kF64:
      return add<kF64>(acc, words, weight);
    case kF32:
      return add<kF32>(acc, words, weight);
    case kF16:
      return add<kF16>(acc, words, weight);
    case kBF16:
      return add<kBF16>(acc, words, weight);
    case kF8E4M3:
      return add<kF8E4M3>(acc, words, weight);
    default:
      return add<kF8E5M2>(acc, words, weight);
  }
}

// The code of a value in the destination's type; of an f64, rounded to odd by one of the functions below, in the
// smaller types.
template <uint8_t kDst, bool kNumber>
__device__ __forceinline__ uint32_t coded(float x) {
  if constexpr (kDst == kBF16) {
    return kNumber ? number_to_bf16(x) : f32_to_bf16(x);
  } else if constexpr (kDst == kF16) {
    return kNumber ? number_to_f16(x) : f32_to_f16(x);
  } else if constexpr (kDst == kF8E4M3) {
    return kNumber ? number_to_f8e4m3(x) : f32_to_f8e4m3(x);
  } else if constexpr (kDst == kF8E5M2) {
    return kNumber ? number_to_f8e5m2(x) : f32_to_f8e5m2(x);
  } else {
    return bit_cast<uint32_t>(kNumber ? x : f64_to_f32(x));
  }
}

template <uint8_t kDst, bool kNumber, int kChunk>
__device__ __forceinline__ Words<4> packed(const float (&values)[kChunk]) {
  constexpr int kPerWord = 4 / kSizeOf<kDst>;
  Words<4> words{};
#pragma unroll
  for (int j = 0; j < kChunk; ++j) {
    words.at[j / kPerWord] |= coded<kDst, kNumber>(values[j]) << 8 * kSizeOf<kDst> * (j % kPerWord);
  }
  return words;
}

template <int kChunk>
__device__ __forceinline__ Words<4> packed_f64(const double (&values)[kChunk]) {
  Words<4> words{};
#pragma unroll
  for (int j = 0; j < kChunk; ++j) {
    uint64_t code = bit_cast<uint64_t>(canonical_f64(values[j]));
    words.at[2 * j] = static_cast<uint32_t>(code);
    words.at[2 * j + 1] = static_cast<uint32_t>(code >> 32);
  }
  return words;
}

__device__ __forceinline__ float magnitude(float x) { return __builtin_fabsf(x); }
__device__ __forceinline__ double magnitude(double x) { return __builtin_fabs(x); }

// The least magnitude that is no finite number in the destination any more.
template <class T, uint8_t kDst>
__device__ __forceinline__ T finite_limit() {
  if (kDst == kF16) return T(65520);
  if (kDst == kBF16) return T(0x1.FFp127);
  if (kDst == kF8E5M2) return T(61440);
  if (kDst == kF32 && sizeof(T) == 8) return T(0x1.FFFFFFp127);
  return static_cast<T>(__builtin_inf());
}

// The same as the upper half of an f64's bits, for quick_odd_f32.
SOUP_HD constexpr uint32_t limit_bits(uint8_t dst_dtype) {
  return dst_dtype == kF16      ? 0x40EFFE00u
         : dst_dtype == kBF16   ? 0x47EFF000u
         : dst_dtype == kF8E5M2 ? 0x40EE0000u
                                : kBeyondF32;
}

template <class T, uint8_t kDst, int kChunk>
__device__ __forceinline__ bool all_below(const T (&acc)[kChunk]) {
  const T limit = finite_limit<T, kDst>();
  bool below = true;
#pragma unroll
  for (int j = 0; j < kChunk; ++j) below &= magnitude(acc[j]) < limit;
  return below;
}

// What a segment's sums are divided by: see quotient() in scalar.h.
template <class T>
struct Divisor {
  T value, reciprocal, least;
  bool once;
};

template <class T, int kChunk>
__device__ __forceinline__ void divide(const T (&acc)[kChunk], const Divisor<T>& divisor, T (&mean)[kChunk]) {
#pragma unroll
  for (int j = 0; j < kChunk; ++j) mean[j] = quotient(acc[j], divisor.value, divisor.reciprocal);
  if (divisor.once) return;
#pragma unroll
  for (int j = 0; j < kChunk; ++j) mean[j] = corrected(mean[j], acc[j], divisor.value, divisor.reciprocal);
}

// Sums divided and rounded the quick way; false where that is not certain, or some of it is not finite in the
// destination.
template <uint8_t kDst, int kChunk>
__device__ __forceinline__ bool quick_mean(const float (&acc)[kChunk], const Divisor<float>& divisor, Words<4>& words) {
  float mean[kChunk];
  divide(acc, divisor, mean);
  bool certain = true;
#pragma unroll
  for (int j = 0; j < kChunk; ++j) certain &= is_quotient(mean[j], divisor.least);
  words = packed<kDst, true>(mean);
  return certain & all_below<float, kDst>(mean);
}

template <uint8_t kDst, int kChunk>
__device__ __forceinline__ bool quick_mean(const double (&acc)[kChunk], const Divisor<double>& divisor,
                                           Words<4>& words) {
  double mean[kChunk];
  divide(acc, divisor, mean);
  bool certain = true;
  if constexpr (kDst == kF64) {
#pragma unroll
    for (int j = 0; j < kChunk; ++j) certain &= is_quotient(mean[j], divisor.least);
    words = packed_f64(mean);
    return certain & all_below<double, kDst>(mean);
  } else {
    // What is too small to be certain is 0 in all smaller types.
    constexpr uint32_t kLimit = limit_bits(kDst);
    float values[kChunk];
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      values[j] = kDst == kF32 ? static_cast<float>(mean[j]) : quick_odd_f32(mean[j], kLimit, certain);
    }
    words = packed<kDst, true>(values);
    return certain & (kDst != kF32 || all_below<float, kDst>(values));
  }
}

template <uint8_t kDst, int kChunk>
__device__ __forceinline__ Words<4> rounded(const float (&mean)[kChunk]) {
  return packed<kDst, false>(mean);
}

template <uint8_t kDst, int kChunk>
__device__ __forceinline__ Words<4> rounded(const double (&mean)[kChunk]) {
  if constexpr (kDst == kF64) {
    return packed_f64(mean);
  } else {
    float values[kChunk];
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      values[j] = kDst == kF32 ? static_cast<float>(mean[j]) : f64_to_odd_f32(mean[j]);
    }
    return packed<kDst, false>(values);
  }
}

}  // namespace device
}  // namespace soup
