// SPDX-License-Identifier: MIT
#include "nonfinite.h"

#include <algorithm>

#include "../kernels.h"
#include "../scalar.h"

namespace soup {
namespace {

// Values looked at before the answer so far is asked for: the inner loop has no branch, so that it is vectorised.
constexpr std::uint64_t kStretch = 1024;

// Infinities and NaN are the values with all bits of `ones` set.
template <class Bits>
bool any_with(const char* values, std::uint64_t n, Bits ones) {
  for (std::uint64_t begin = 0; begin < n; begin += kStretch) {
    std::uint64_t end = std::min(n, begin + kStretch);
    unsigned found = 0;
    for (std::uint64_t i = begin; i < end; ++i) {
      found |= (load_bits<Bits>(values + i * sizeof(Bits)) & ones) == ones ? 1u : 0u;
    }
    if (found != 0) return true;
  }
  return false;
}

}  // namespace

bool has_nonfinite(const char* values, std::uint64_t n, std::uint8_t dtype) {
  switch (dtype) {
    case kF64:
      return any_with<std::uint64_t>(values, n, 0x7FF0000000000000ull);
    case kF32:
      return any_with<std::uint32_t>(values, n, 0x7F800000u);
    case kF16:
      return any_with<std::uint16_t>(values, n, 0x7C00u);
    case kBF16:
      return any_with<std::uint16_t>(values, n, 0x7F80u);
    case kF8E4M3:
      return any_with<std::uint8_t>(values, n, 0x7Fu);
    case kF8E5M2:
      return any_with<std::uint8_t>(values, n, 0x7Cu);
    default:
      return false;
  }
}

}  // namespace soup
