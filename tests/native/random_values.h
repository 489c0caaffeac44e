// SPDX-License-Identifier: MIT
// Random bits in which every kind of number occurs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../csrc/kernels.h"

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 2 + 1) {}

  std::uint64_t bits() {  // xorshift64*
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545F4914F6CDD1Dull;
  }
  std::uint64_t below(std::uint64_t limit) { return (bits() >> 16) % limit; }
  template <class T, std::size_t kCount>
  T one_of(const T (&values)[kCount]) {
    return values[below(kCount)];
  }

  // Any bits, but every third element of a moderate exponent, so that sums are finite, and every seventh subnormal.
  void fill(unsigned char* values, std::size_t n, std::uint8_t dtype) {
    static const unsigned char one[] = {0x3F, 0x3F, 0x3C, 0x3F, 0x38, 0x3C};
    std::size_t size = soup::item_size(dtype);
    for (std::size_t i = 0; i < n * size; ++i) values[i] = static_cast<unsigned char>(bits() >> 40);
    for (std::size_t i = 0; i < n && dtype < soup::kFloatTypes; ++i) {
      unsigned char* top = values + i * size + size - 1;
      if (i % 3 == 0) *top = static_cast<unsigned char>((*top & 0x80) | one[dtype]);
      if (i % 7 == 1) *top &= 0x80;
    }
  }

  // The same, all of a moderate exponent.
  void fill_finite(unsigned char* values, std::size_t n, std::uint8_t dtype) {
    static const unsigned char one[] = {0x3F, 0x3F, 0x3C, 0x3F, 0x38, 0x3C};
    fill(values, n, dtype);
    std::size_t size = soup::item_size(dtype);
    for (std::size_t i = 0; i < n && dtype < soup::kFloatTypes; ++i) {
      unsigned char* top = values + i * size + size - 1;
      *top = static_cast<unsigned char>((*top & 0x80) | one[dtype]);
    }
  }

 private:
  std::uint64_t state_;
};
