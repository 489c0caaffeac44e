// SPDX-License-Identifier: MIT
// One element in and out of raw memory, at any alignment, in terms of scalar.h. Host and device, every ISA unit.
#pragma once

#include "kernels.h"
#include "scalar.h"

namespace soup {

template <class T, uint8_t kType>
SOUP_HD T element(const char* p, size_t i) {
  if constexpr (kType == kF64) {
    return static_cast<T>(load_bits<double>(p + 8 * i));
  } else if constexpr (kType == kF32) {
    return load_bits<float>(p + 4 * i);
  } else if constexpr (kType == kF16) {
    return f16_to_f32(load_bits<uint16_t>(p + 2 * i));
  } else if constexpr (kType == kBF16) {
    return bf16_to_f32(load_bits<uint16_t>(p + 2 * i));
  } else if constexpr (kType == kF8E4M3) {
    return f8e4m3_to_f32(load_bits<uint8_t>(p + i));
  } else {
    return f8e5m2_to_f32(load_bits<uint8_t>(p + i));
  }
}

template <class T>
SOUP_HD T element_any(uint8_t type, const char* p, size_t i) {
  switch (type) {
    case kF64:
      return element<T, kF64>(p, i);
    case kF32:
      return element<T, kF32>(p, i);
    case kF16:
      return element<T, kF16>(p, i);
    case kBF16:
      return element<T, kBF16>(p, i);
    case kF8E4M3:
      return element<T, kF8E4M3>(p, i);
    default:
      return element<T, kF8E5M2>(p, i);
  }
}

template <class T>
SOUP_HD void put(char* p, size_t i, T value) {
  __builtin_memcpy(p + i * sizeof(T), &value, sizeof(T));
}

}  // namespace soup
