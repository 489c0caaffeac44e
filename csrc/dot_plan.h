// SPDX-License-Identifier: MIT
// The inner products of a gradient with K sources, segment by segment: where everything is. The contract is in
// kernels.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace soup {

struct DotPlan {
  struct Segment {
    std::uint64_t n;  // elements
    std::uint64_t gradient;
    std::uint64_t first_tile;
    std::uint8_t dtype;  // of the gradient
  };
  std::vector<Segment> segments;
  std::size_t count = 0;             // sources
  std::vector<std::uint64_t> at;     // [segments, count]: addresses
  std::vector<std::uint8_t> dtypes;  // the same
  std::uint64_t tiles = 0;           // of all segments
  std::uint64_t bytes = 0;           // that are read, if the gradient is read once

  // A segment, to be followed by its `count` sources.
  void append(std::uint64_t n, std::uint64_t gradient, std::uint8_t dtype) {
    segments.push_back({n, gradient, tiles, dtype});
    tiles += tiles_of(n);
    bytes += n * item_size(dtype);
  }

  void append_source(std::uint64_t address, std::uint8_t dtype) {
    at.push_back(address);
    dtypes.push_back(dtype);
    bytes += segments.back().n * item_size(dtype);
  }

  static std::uint64_t tiles_of(std::uint64_t n) { return n / kDotTile + (n % kDotTile != 0 ? 1 : 0); }
};

}  // namespace soup
