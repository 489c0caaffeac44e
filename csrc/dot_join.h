// SPDX-License-Identifier: MIT
// The sums of a segment's tiles as one, the second half of the contract of inner products in kernels.h.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "scalar.h"

namespace soup {

// `width` segments, or pairs of tensors, of as many tiles, side by side: a row of `width` sums for each of kDotSums
// places. Caller must have the default floating-point environment, and zeros in the rows before the first tile.
inline void add_tile(double* rows, std::size_t width, std::uint64_t tile, const double* sums, std::size_t stride) {
  double* row = rows + tile % kDotSums * width;
  for (std::size_t i = 0; i < width; ++i) row[i] += sums[i * stride];
}

// The rows that a tree over the places of `tiles` tiles takes: a power of two.
inline std::uint64_t rows_reached(std::uint64_t tiles) {
  std::uint64_t rows = 1;
  while (rows < std::min<std::uint64_t>(tiles, kDotSums)) rows *= 2;
  return rows;
}

// The tree of neighbours over rows_reached(tiles) rows; the results are in the first one then, the others have no
// meaning any more. Places that no tile reaches are 0, and add nothing.
inline void join_tiles(double* rows, std::size_t width, std::uint64_t tiles) {
  for (std::uint64_t left = rows_reached(tiles) / 2; left > 0; left /= 2) {
    for (std::uint64_t i = 0; i < left; ++i) {
      const double* pair = rows + 2 * i * width;
      for (std::size_t j = 0; j < width; ++j) rows[i * width + j] = pair[j] + pair[width + j];
    }
  }
  for (std::size_t j = 0; j < width; ++j) rows[j] = canonical_f64(rows[j] + 0.0);
}

}  // namespace soup
