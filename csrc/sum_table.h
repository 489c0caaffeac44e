// SPDX-License-Identifier: MIT
// The work of one weighted_sum launch as plain bytes: what the packer (csrc/io/sum_table.cpp) writes on the host and
// the kernel (csrc/cuda/weighted_sum.cuh) reads on the device. Plain C types only.
//
// A segment's elements are dealt out in chunks of chunk_elements(accumulator, dst, halved). Chunk c holds the elements
// [c * chunk - shift, (c + 1) * chunk - shift) as far as they exist; the packer chooses shift so that whole chunks are
// aligned in as much of the memory as can be, and the first and the last chunk may be partial. Origins are addresses of
// the first element of chunk 0, which is before the segment's first element by shift elements. A tile is `rounds` times
// kRoundChunks chunks of one segment: the share that a block of threads takes at a time.
#pragma once

#include "kernels.h"

namespace soup {

constexpr uint32_t kSumThreads = 256;
constexpr uint32_t kSumUnroll = 2;  // chunks that a thread has in hand at once
constexpr uint32_t kRoundChunks = kSumThreads * kSumUnroll;

// Of a chunk: 16 bytes of the destination, or, of a narrow one, of the widest source that is usual with that
// accumulator. Halved for segments with a source wider than that, an f32 or f64 running sum beside 16-bit models: no
// chunk of a source has more than 16 bytes. Of kRaw, one element is one byte.
SOUP_HD constexpr uint32_t chunk_elements(uint8_t accumulator, uint8_t dst_dtype, bool halved) {
  return dst_dtype == kRaw                             ? 16
         : dst_dtype == kF64                           ? 2
         : dst_dtype == kF32 || accumulator == kAccF64 ? (halved ? 2 : 4)
                                                       : (halved ? 4 : 8);
}

// Each kind of segment has a kernel of its own, and a launch: one for all the segments of that kind.
constexpr uint32_t kSumKinds = 4 * kFloatTypes + 1;
SOUP_HD constexpr uint32_t sum_kind(uint8_t accumulator, uint8_t dst_dtype, bool halved) {
  return dst_dtype == kRaw ? kSumKinds - 1 : (halved ? 2u : 0u) * kFloatTypes + accumulator * kFloatTypes + dst_dtype;
}

struct SumSource {
  uint64_t origin;
  double weight_f64;
  float weight_f32;
  uint8_t dtype;
  uint8_t width;  // the widest access, in bytes, that whole chunks can be read with: a power of two up to 16
  uint16_t unused;
};

struct SumSegment {
  uint64_t origin;  // of the destination
  uint64_t n;       // elements
  double divisor;
  double reciprocal;  // in the accumulator's type, as the two below: for the quotients of scalar.h
  double least;       // the least quotient that is certain
  uint32_t first_source;
  uint32_t count;
  uint32_t first_tile;
  uint32_t chunks;
  // The chunks of a segment that the quick way takes, [quick_begin, quick_end): the whole ones, where every chunk of
  // sources and destination is one aligned access of at most 16 bytes and the divisor has quotients. Else none.
  uint32_t quick_begin;
  uint32_t quick_end;
  uint32_t first_row;  // rows: see Plan in io/plan.h
  uint32_t rows;
  uint8_t dst_dtype;
  uint8_t accumulator;
  uint8_t width;  // as in SumSource
  uint8_t shift;
  uint8_t chunk;  // elements
  uint8_t once;   // as divides_once says of the divisor
};

// Where the parts begin, in bytes from the table's start, and how many of them there are. Passed by value to the
// launch.
struct SumTableShape {
  uint64_t segments_at;  // SumSegment[segments]
  uint64_t sources_at;   // SumSource[sources]
  uint64_t row_ends_at;  // uint64_t[rows]: Plan::row_ends
  uint64_t tiles_at;     // uint32_t[tiles]: the segment of each tile, kind by kind
  uint64_t bytes;        // of the table; it must be aligned to 16
  uint32_t segments;
  uint32_t rows;
  uint32_t tiles;
  uint32_t rounds;
  uint32_t kind_ends[kSumKinds];  // the tiles of a kind go from the end of the kind before to here
};

}  // namespace soup
