// SPDX-License-Identifier: MIT
// One element in and out of raw memory, in terms of scalar.h. Included inside an unnamed namespace by every ISA unit.
#pragma once

template <class T, uint8_t kType>
static inline T element(const char* p, size_t i) {
  if constexpr (kType == kF64) return static_cast<T>(load_bits<double>(p + 8 * i));
  if constexpr (kType == kF32) return load_bits<float>(p + 4 * i);
  if constexpr (kType == kF16) return f16_to_f32(load_bits<uint16_t>(p + 2 * i));
  if constexpr (kType == kBF16) return bf16_to_f32(load_bits<uint16_t>(p + 2 * i));
  if constexpr (kType == kF8E4M3) return f8e4m3_to_f32(load_bits<uint8_t>(p + i));
  return f8e5m2_to_f32(load_bits<uint8_t>(p + i));
}

template <class T>
static T element_any(uint8_t type, const char* p, size_t i) {
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
static inline void put(char* p, size_t i, T value) {
  __builtin_memcpy(p + i * sizeof(T), &value, sizeof(T));
}
