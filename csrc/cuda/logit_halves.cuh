// SPDX-License-Identifier: MIT
// Words of two 16-bit logits.
#pragma once

#include "../element.h"
#include "logit_group.cuh"

namespace soup {
namespace cuda {

// One of them, as a number: the first is the lower half.
template <uint8_t kType>
__device__ __forceinline__ float value_in(uint32_t word, int half) {
  if constexpr (kType == kBF16) return bit_cast<float>(half == 0 ? word << 16 : word & 0xFFFF0000u);
  return f16_to_f32(static_cast<uint16_t>(word >> 16 * half));
}

// The code of a value of the type.
template <uint8_t kType>
__device__ __forceinline__ uint16_t code_of(float value) {
  if constexpr (kType == kBF16) return static_cast<uint16_t>(bit_cast<uint32_t>(value) >> 16);
#if defined(__CUDA_ARCH__)
  uint16_t code;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(code) : "f"(value));
  return code;
#else
  return static_cast<uint16_t>(number_to_f16(value));
#endif
}

// In each half; NaN where one of them is.
template <uint8_t kType>
__device__ __forceinline__ uint32_t larger_halves(uint32_t a, uint32_t b) {
  uint32_t result = 0;
#if defined(__CUDA_ARCH__)
  if constexpr (kType == kBF16) {
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  } else {
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  }
#else
  for (int half = 0; half < 2; ++half) {
    float best = larger(value_in<kType>(a, half), value_in<kType>(b, half));
    uint32_t code = best != best ? (kType == kBF16 ? kNanBF16 : kNanF16) : code_of<kType>(best);
    result |= code << 16 * half;
  }
#endif
  return result;
}

}  // namespace cuda
}  // namespace soup
