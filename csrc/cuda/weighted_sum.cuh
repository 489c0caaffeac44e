// SPDX-License-Identifier: MIT
// The kernel of weighted sums over a table (sum_table.h): contract and bits of WeightedSumArgs in kernels.h.
//
// A block takes a tile, a thread kSumUnroll chunks of it at a time. Sources are read kSumBatch at a time, whatever
// their types, before the first of them is used: enough loads in flight to hide the memory's latency. Only the
// unpacking knows types. Chunks that are cut off by the ends of a segment, or not aligned, take a slower way.
#pragma once

#include "../sum_table.h"
#include "chunk_arithmetic.cuh"

namespace soup {
namespace device {

constexpr uint32_t kSumBatch = 2;

// A table in the device's memory, and the flags of its rows (or null). All of it is the kernel's arguments, which cost
// no registers: what is rarely needed is worked out anew.
struct SumTableView {
  const char* bytes;
  SumTableShape shape;
  uint32_t* nonfinite;

  __device__ const SumSegment* segment_of(uint32_t tile) const {
    const uint32_t* tiles = reinterpret_cast<const uint32_t*>(bytes + shape.tiles_at);
    return reinterpret_cast<const SumSegment*>(bytes + shape.segments_at) + tiles[tile];
  }
  __device__ const SumSource* sources_of(const SumSegment* segment) const {
    return reinterpret_cast<const SumSource*>(bytes + shape.sources_at) + segment->first_source;
  }
  __device__ const uint64_t* row_ends() const { return reinterpret_cast<const uint64_t*>(bytes + shape.row_ends_at); }
};

template <class T>
__device__ __forceinline__ T weight_of(const SumSource* source) {
  if constexpr (sizeof(T) == 8) {
    return __ldg(&source->weight_f64);
  } else {
    return __ldg(&source->weight_f32);
  }
}

__device__ inline void mark_row(const SumTableView& table, const SumSegment* segment, uint64_t element) {
  if (table.nonfinite == nullptr) return;
  const uint64_t* ends = table.row_ends() + segment->first_row;
  uint32_t low = 0;
  uint32_t high = segment->rows - 1;  // the first row that ends after the element
  while (low < high) {
    uint32_t middle = (low + high) / 2;
    if (ends[middle] > element) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  // One of many, often: then the flag is up already, and all would wait for each other to raise it.
  uint32_t* flag = &table.nonfinite[segment->first_row + low];
  if (__ldcg(flag) == 0) atomicOr(flag, 1u);
}

// Once more with weights scaled down, where the plain sum is not finite. `place`: in elements from the origins.
template <class T>
__device__ inline T redone(const SumSource* sources, uint32_t count, T divisor, uint64_t place) {
  const T down = sizeof(T) == 4 ? T(0x1p-16) : T(0x1p-64);
  const T up = sizeof(T) == 4 ? T(0x1p16) : T(0x1p64);
  T sum = T(-0.0);
  for (uint32_t k = 0; k < count; ++k) {
    const SumSource* source = sources + k;
    T x = element_any<T>(source->dtype, reinterpret_cast<const char*>(source->origin), place);
    sum = fused_multiply_add(weight_of<T>(source) * down, x, sum);
  }
  return (sum / divisor) * up;
}

// The elements [from, to) of a chunk that exist.
struct Extent {
  uint32_t from, to;
  bool whole;
};

// Of the chunk that begins `first` elements after the origins.
__device__ inline Extent extent_of(const SumSegment* segment, uint64_t first, uint32_t chunk) {
  uint64_t end = segment->shift + segment->n;
  uint32_t from = first < segment->shift ? static_cast<uint32_t>(segment->shift - first) : 0;
  uint32_t to = first + chunk > end ? static_cast<uint32_t>(end - first) : chunk;
  return {from, to, from == 0 && to == chunk};
}

// The widest access inside of an extent.
__device__ inline uint32_t width_within(const Extent& extent, uint32_t width, uint32_t size) {
  uint32_t most = extent.whole || size > 4 ? 4 : size;
  return width < most ? width : most;
}

// The rare end of a chunk: overflows are redone, and rows marked. A loop without an index into `acc`, which would move
// it to memory.
template <class T, uint8_t kDst, int kChunk>
__device__ inline void settle(T (&acc)[kChunk], const SumTableView& table, const SumSegment* segment, uint64_t first,
                              const Extent& extent) {
#pragma unroll 1
  for (uint32_t j = 0; j < kChunk; ++j) {
    T x = acc[0];
    uint64_t place = first + j;
    const T limit = finite_limit<T, kDst>();
    if (!(magnitude(x) < limit) && extent.from <= j && j < extent.to) {
      if (x - x != T(0))
        x = redone<T>(table.sources_of(segment), segment->count, static_cast<T>(segment->divisor), place);
      // e4m3 saturates.
      bool finite = kDst == kF8E4M3 ? x == x : magnitude(x) < limit;
      if (!finite) mark_row(table, segment, place - segment->shift);
    }
#pragma unroll
    for (int i = 0; i + 1 < kChunk; ++i) acc[i] = acc[i + 1];
    acc[kChunk - 1] = x;
  }
}

// Whole chunks c, c + kSumThreads, ... of a segment that the quick way takes. Returns a bit for each that remains to
// be done the slow way.
template <class T, uint8_t kDst, int kChunk, int kUnroll>
__device__ __forceinline__ uint32_t sum_vectors(const SumTableView& table, const SumSegment* segment, uint32_t c) {
  const SumSource* source = table.sources_of(segment);
  uint32_t count = segment->count;
  T acc[kUnroll][kChunk];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
    for (int j = 0; j < kChunk; ++j) acc[u][j] = T(-0.0);  // adding a product to it leaves the product as it is
  }
#pragma unroll 1
  for (uint32_t k = 0; k < count; k += kSumBatch, source += kSumBatch) {
    Words<4> words[kSumBatch][kUnroll];
#pragma unroll
    for (uint32_t b = 0; b < kSumBatch; ++b) {
      if (b > 0 && k + b >= count) break;
      uint32_t bytes = __ldg(&source[b].width);
      uint64_t address = __ldg(&source[b].origin) + static_cast<uint64_t>(c) * bytes;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) words[b][u] = load_vector<kChunk>(address, u * kSumThreads, bytes);
    }
#pragma unroll
    for (uint32_t b = 0; b < kSumBatch; ++b) {
      if (b > 0 && k + b >= count) break;
      add_any(acc, words[b], weight_of<T>(&source[b]), __ldg(&source[b].dtype));
    }
  }
  constexpr uint32_t kBytes = kChunk * kSizeOf<kDst>;
  uint64_t address = segment->origin + static_cast<uint64_t>(c) * kBytes;
  Divisor<T> divisor = {static_cast<T>(__ldg(&segment->divisor)), static_cast<T>(__ldg(&segment->reciprocal)),
                        static_cast<T>(__ldg(&segment->least)), __ldg(&segment->once) != 0};
  uint32_t left = 0;
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    Words<4> words;
    if (quick_mean<kDst>(acc[u], divisor, words)) {
      store_vector<kBytes>(address + u * (kSumThreads * kBytes), words);
    } else {
      left |= 1u << u;
    }
  }
  return left;
}

// Chunk c of any segment.
template <class T, uint8_t kDst, int kChunk>
__device__ __forceinline__ void sum_chunk(const SumTableView& table, const SumSegment* segment, uint32_t c) {
  uint64_t first = static_cast<uint64_t>(c) * kChunk;
  Extent extent = extent_of(segment, first, kChunk);
  const SumSource* source = table.sources_of(segment);
  T acc[1][kChunk];
#pragma unroll
  for (int j = 0; j < kChunk; ++j) acc[0][j] = T(-0.0);
#pragma unroll 1
  for (uint32_t k = 0; k < segment->count; ++k, ++source) {
    uint32_t size = static_cast<uint32_t>(item_size(source->dtype));
    uint64_t address = source->origin + first * size;
    Words<4> words[1];
    if (extent.whole && source->width == 16) {
      words[0] = load_vector<kChunk>(address, 0, 16);
    } else {
      words[0] = load_part<4>(address, width_within(extent, source->width, size), extent.from * size, extent.to * size);
    }
    add_any(acc, words, weight_of<T>(source), source->dtype);
  }
  T divisor = static_cast<T>(segment->divisor);
#pragma unroll
  for (int j = 0; j < kChunk; ++j) acc[0][j] = acc[0][j] / divisor;
  if (!all_below<T, kDst>(acc[0])) settle<T, kDst, kChunk>(acc[0], table, segment, first, extent);
  constexpr uint32_t kSize = kSizeOf<kDst>;
  uint64_t address = segment->origin + first * kSize;
  uint32_t width = width_within(extent, segment->width, kSize);
  store_part<4>(address, width, extent.from * kSize, extent.to * kSize, rounded<kDst>(acc[0]));
}

template <class T, uint8_t kDst, int kChunk>
__device__ __forceinline__ void sum_round(const SumTableView& table, const SumSegment* segment, uint32_t c) {
  uint32_t end = segment->quick_end;
  uint32_t left = (1u << kSumUnroll) - 1;
  if (segment->quick_begin <= c && c < end) {
    if (c + (kSumUnroll - 1) * kSumThreads < end) {
      left = sum_vectors<T, kDst, kChunk, kSumUnroll>(table, segment, c);
    } else {
      left = left - 1 + sum_vectors<T, kDst, kChunk, 1>(table, segment, c);
    }
  }
#pragma unroll 1
  for (; left != 0; left >>= 1, c += kSumThreads) {
    if ((left & 1) != 0 && c < segment->chunks) sum_chunk<T, kDst, kChunk>(table, segment, c);
  }
}

// Chunk c of bytes from one source, as they are.
__device__ inline void copy_chunk(const SumTableView& table, const SumSegment* segment, uint32_t c) {
  if (c >= segment->chunks) return;
  const SumSource* source = table.sources_of(segment);
  Extent extent = extent_of(segment, 16ull * c, 16);
  uint64_t from = source->origin + 16ull * c;
  uint64_t to = segment->origin + 16ull * c;
  if (segment->quick_begin <= c && c < segment->quick_end) {
    store_vector<16>(to, load_vector<1>(from, 0, 16));
  } else {
    uint32_t read = width_within(extent, source->width, 1);
    uint32_t written = width_within(extent, segment->width, 1);
    store_part<4>(to, written, extent.from, extent.to, load_part<4>(from, read, extent.from, extent.to));
  }
}

// Tiles [begin, end) of the table, all of which have this accumulator, destination and elements a chunk.
template <class T, uint8_t kDst, bool kHalved>
__global__ void __launch_bounds__(kSumThreads, 4)
    weighted_sum_kernel(SumTableView table, uint32_t begin, uint32_t end) {
  constexpr int kChunk = chunk_elements(sizeof(T) == 8 ? kAccF64 : kAccF32, kDst, kHalved);
  for (uint32_t tile = begin + blockIdx.x; tile < end; tile += gridDim.x) {
    const SumSegment* segment = table.segment_of(tile);
    uint32_t c = (tile - segment->first_tile) * table.shape.rounds * kRoundChunks + threadIdx.x;
#pragma unroll 1
    for (uint32_t r = 0; r < table.shape.rounds; ++r, c += kRoundChunks) {
      if constexpr (kDst == kRaw) {
        for (uint32_t u = 0; u < kSumUnroll; ++u) copy_chunk(table, segment, c + u * kSumThreads);
      } else {
        sum_round<T, kDst, kChunk>(table, segment, c);
      }
    }
  }
}

}  // namespace device
}  // namespace soup
