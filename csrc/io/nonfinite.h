// SPDX-License-Identifier: MIT
// Which values are no numbers.
#pragma once

#include <cstdint>

namespace soup {

// Whether one of n values of that float type, at any alignment, is NaN or infinite; for e4m3, which has no infinity,
// whether one is NaN.
bool has_nonfinite(const char* values, std::uint64_t n, std::uint8_t dtype);

}  // namespace soup
