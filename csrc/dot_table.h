// SPDX-License-Identifier: MIT
// The work of a `dots` launch as plain bytes: what the packer (csrc/io/dot_table.cpp) writes on the host and the kernel
// (csrc/cuda/dots.cuh) reads on the device. Plain C types only.
//
// Sources are in groups of kDotWarpGroup, the last one may be smaller; a warp's work is one tile with one group. Warp i
// of the launch has tile i / groups, group i % groups: the warps of a block share the gradient's tile, which they find
// in the cache.
#pragma once

#include "kernels.h"

namespace soup {

constexpr uint32_t kDotWarpGroup = 4;  // sources that a warp has in hand at once

// How memory can be read: byte by byte, element by element, or by 16 bytes (8 of an 8-bit type).
enum DotAccess : uint8_t { kDotBytes = 0, kDotElements = 1, kDotWide = 2 };

struct DotSource {
  uint64_t at;
  uint8_t dtype;
  uint8_t access;
  uint8_t together;  // of the first in a group: 1 where it is one of kDotWarpGroup wide sources of one type
  uint8_t unused[5];
};

struct DotSegment {
  uint64_t gradient;
  uint64_t n;
  uint32_t first_tile;
  uint32_t tiles;
  uint8_t dtype;
  uint8_t access;
  uint8_t unused[6];
};

// Where the parts begin, in bytes from the table's start, and how many of them there are. Passed by value to the
// launch.
struct DotTableShape {
  uint64_t segments_at;  // DotSegment[segments]
  uint64_t sources_at;   // DotSource[segments][count]
  uint64_t tiles_at;     // uint32_t[tiles]: the segment of each tile
  uint64_t bytes;        // of the table; it must be aligned to 16
  uint32_t segments;
  uint32_t count;
  uint32_t tiles;
  uint32_t groups;
};

}  // namespace soup
