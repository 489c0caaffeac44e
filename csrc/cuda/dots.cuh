// SPDX-License-Identifier: MIT
// Inner products (the contract is in kernels.h, the table in dot_table.h). A lane has 8 of the 256 sums of a tile for
// each source in hand: elements 8 * lane to 8 * lane + 7 of every strip of 256, which of a 16-bit type are one load of
// 16 bytes. Warps know nothing of each other: no shared memory, no barrier.
#pragma once

#include "../dot_table.h"
#include "../element.h"
#include "launch.h"

namespace soup {
namespace device {

constexpr uint32_t kDotThreads = 256;
constexpr uint32_t kDotWarps = kDotThreads / 32;
constexpr int kDotLaneSums = kDotSums / 32;

// Elements in one access.
template <uint8_t kType>
constexpr int kDotAccess = item_size(kType) == 8   ? 2
                           : item_size(kType) == 4 ? 4
                                                   : 8;

// Some elements as they are in memory.
template <uint8_t kType, int kCount>
struct DotRaw {
  static constexpr int kBytes = kCount * static_cast<int>(item_size(kType));
  uint32_t words[(kBytes + 3) / 4];

  __device__ double value(int i) const { return element<double, kType>(reinterpret_cast<const char*>(words), i); }
};

template <bool kStream, class T>
__device__ __forceinline__ T dot_load(const char* p) {
  return kStream ? __ldcs(reinterpret_cast<const T*>(p)) : __ldg(reinterpret_cast<const T*>(p));
}

// kStream: read once, and not to be kept in the caches. kWide: in as few accesses as possible, else one an element.
template <bool kStream, bool kWide, uint8_t kType, int kCount>
__device__ __forceinline__ void dot_fetch(DotRaw<kType, kCount>& raw, const char* p) {
  constexpr int bytes = DotRaw<kType, kCount>::kBytes;
  constexpr uint32_t size = static_cast<uint32_t>(item_size(kType));
  if constexpr (kWide && bytes >= 16) {
#pragma unroll
    for (int i = 0; i < bytes / 16; ++i) {
      uint4 v = dot_load<kStream, uint4>(p + 16 * i);
      raw.words[4 * i] = v.x, raw.words[4 * i + 1] = v.y, raw.words[4 * i + 2] = v.z, raw.words[4 * i + 3] = v.w;
    }
  } else if constexpr ((kWide && bytes == 8) || size == 8) {
#pragma unroll
    for (int i = 0; i < bytes / 8; ++i) {
      uint2 v = dot_load<kStream, uint2>(p + 8 * i);
      raw.words[2 * i] = v.x, raw.words[2 * i + 1] = v.y;
    }
  } else if constexpr ((kWide && bytes == 4) || size == 4) {
#pragma unroll
    for (int i = 0; i < bytes / 4; ++i) raw.words[i] = dot_load<kStream, uint32_t>(p + 4 * i);
  } else if constexpr ((kWide && bytes == 2) || size == 2) {
#pragma unroll
    for (int i = 0; i < bytes / 2; ++i) {
      uint32_t v = dot_load<kStream, uint16_t>(p + 2 * i);
      raw.words[i / 2] = i % 2 == 0 ? v : raw.words[i / 2] | v << 16;
    }
  } else {
#pragma unroll
    for (int i = 0; i < bytes; ++i) {
      uint32_t v = dot_load<kStream, uint8_t>(p + i);
      raw.words[i / 4] = i % 4 == 0 ? v : raw.words[i / 4] | v << 8 * (i % 4);
    }
  }
}

// The work of one warp. Pointers of a lane are at its first element of the strip that is next.
struct DotWork {
  const char* gradient;
  uint8_t dtype;
  uint32_t tile;
  uint32_t in_segment;  // tiles of the segment before this one
  uint32_t n;           // elements of the tile
  uint32_t lane;
};

// Where the sums of the tiles go.
struct DotSumsAt {
  double* sums;
  uint32_t tiles;

  __device__ __forceinline__ void put(const DotWork& work, uint32_t k, double sum) const {
    if (work.lane == 0) sums[static_cast<uint64_t>(k) * tiles + work.tile] = sum;
  }
};

template <uint8_t kType, bool kWide, int kCount>
__device__ __forceinline__ void dot_gradient_as(double (&g)[kCount], const char* gradient, int first) {
  DotRaw<kType, kCount> raw;
  dot_fetch<false, kWide>(raw, gradient + first * static_cast<int>(item_size(kType)));
#pragma unroll
  for (int i = 0; i < kCount; ++i) g[i] = raw.value(i);
}

// The gradient's elements from the lane's number `first` on.
template <bool kWide, int kCount>
__device__ __forceinline__ void dot_gradient(double (&g)[kCount], const DotWork& work, int first) {
  switch (work.dtype) {
    case kF64:
      return dot_gradient_as<kF64, kWide>(g, work.gradient, first);
    case kF32:
      return dot_gradient_as<kF32, kWide>(g, work.gradient, first);
    case kF16:
      return dot_gradient_as<kF16, kWide>(g, work.gradient, first);
    case kBF16:
      return dot_gradient_as<kBF16, kWide>(g, work.gradient, first);
    case kF8E4M3:
      return dot_gradient_as<kF8E4M3, kWide>(g, work.gradient, first);
    default:
      return dot_gradient_as<kF8E5M2, kWide>(g, work.gradient, first);
  }
}

// The sums of a lane and those of the others as one, on every lane.
__device__ __forceinline__ double dot_join(const double (&sums)[kDotLaneSums]) {
  static_assert(kDotLaneSums == 8, "three levels of the tree are in a lane");
  double sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
#pragma unroll
  for (int bits = 1; bits < 32; bits *= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, bits);
  return sum;
}

// All whole strips of sources of one type, at the end of which the pointers are. A source's next access is on its way
// as soon as the present one has been used.
template <uint8_t kType, int kSources, bool kWide>
__device__ __forceinline__ void dot_strips(double (&sums)[kSources][kDotLaneSums], DotWork& work,
                                           const char* (&x)[kSources]) {
  constexpr int per = kDotAccess<kType>;
  constexpr int size = static_cast<int>(item_size(kType));
  const uint32_t gradient_step = static_cast<uint32_t>(kDotSums * item_size(work.dtype));
  DotRaw<kType, per> raw[kSources];
#pragma unroll
  for (int k = 0; k < kSources; ++k) {
    if (work.n >= kDotSums) dot_fetch<true, kWide>(raw[k], x[k]);
  }
  for (uint32_t left = work.n / static_cast<uint32_t>(kDotSums); left != 0; --left) {
#pragma unroll
    for (int part = 0; part < kDotLaneSums; part += per) {
      double g[per];
      dot_gradient<kWide>(g, work, part);
      bool last = part + per == kDotLaneSums;
#pragma unroll
      for (int k = 0; k < kSources; ++k) {
#pragma unroll
        for (int i = 0; i < per; ++i) {
          sums[k][part + i] = fused_multiply_add(g[i], raw[k].value(i), sums[k][part + i]);
        }
        if (last) x[k] += static_cast<int>(kDotSums) * size;
        if (!last || left != 1) dot_fetch<true, kWide>(raw[k], x[k] + (last ? 0 : part + per) * size);
      }
    }
    work.gradient += gradient_step;
  }
}

// The next strip, of which there are `left` elements, byte by byte. Rare: an element at a time, so that the code is
// short.
template <int kSources>
__device__ __forceinline__ void dot_strip_of(double (&sums)[kSources][kDotLaneSums], const DotWork& work, uint8_t type,
                                             const char* const (&x)[kSources], uint32_t left) {
#pragma unroll 1
  for (int i = 0; i < kDotLaneSums; ++i) {
    if (work.lane * kDotLaneSums + i >= left) break;
    double g = element_any<double>(work.dtype, work.gradient, i);
#pragma unroll
    for (int k = 0; k < kSources; ++k) {
      double value = element_any<double>(type, x[k], i);
#pragma unroll
      for (int j = 0; j < kDotLaneSums; ++j) {  // sums[k][i], were registers to have numbers
        if (j == i) sums[k][j] = fused_multiply_add(g, value, sums[k][j]);
      }
    }
  }
}

template <int kSources>
__device__ __forceinline__ void dot_clear(double (&sums)[kSources][kDotLaneSums]) {
#pragma unroll
  for (int k = 0; k < kSources; ++k) {
#pragma unroll
    for (int i = 0; i < kDotLaneSums; ++i) sums[k][i] = 0.0;
  }
}

// The lane's first element in the tile.
__device__ __forceinline__ const char* dot_place(const DotWork& work, uint64_t at, uint8_t type) {
  uint64_t element = static_cast<uint64_t>(work.in_segment) * kDotTile + work.lane * kDotLaneSums;
  return reinterpret_cast<const char*>(at) + element * item_size(type);
}

template <uint8_t kType, int kSources, bool kWide>
__device__ __forceinline__ void dot_as(double (&sums)[kSources][kDotLaneSums], DotWork work, const DotSource* source) {
  const char* x[kSources];
#pragma unroll
  for (int i = 0; i < kSources; ++i) x[i] = dot_place(work, source[i].at, kType);
  dot_strips<kType, kSources, kWide>(sums, work, x);
  if (work.n % kDotSums != 0) dot_strip_of(sums, work, kType, x, work.n % kDotSums);
}

// kSources sources from `source`, number k, on; all of one type.
template <int kSources, bool kWide>
__device__ __forceinline__ void dot_sources(const DotWork& work, const DotSource* source, uint32_t k,
                                            const DotSumsAt& out) {
  double sums[kSources][kDotLaneSums];
  dot_clear(sums);
  switch (source->dtype) {
    case kF64:
      dot_as<kF64, kSources, kWide>(sums, work, source);
      break;
    case kF32:
      dot_as<kF32, kSources, kWide>(sums, work, source);
      break;
    case kF16:
      dot_as<kF16, kSources, kWide>(sums, work, source);
      break;
    case kBF16:
      dot_as<kBF16, kSources, kWide>(sums, work, source);
      break;
    case kF8E4M3:
      dot_as<kF8E4M3, kSources, kWide>(sums, work, source);
      break;
    default:
      dot_as<kF8E5M2, kSources, kWide>(sums, work, source);
  }
#pragma unroll
  for (int i = 0; i < kSources; ++i) out.put(work, k + i, dot_join(sums[i]));
}

// One source, where it or the gradient is not even aligned to its own elements.
__device__ __forceinline__ void dot_bytes(DotWork work, const DotSource& source, uint32_t k, const DotSumsAt& out) {
  double sums[1][kDotLaneSums];
  dot_clear(sums);
  const char* x[1] = {dot_place(work, source.at, source.dtype)};
  for (uint32_t done = 0; done < work.n; done += kDotSums) {
    dot_strip_of(sums, work, source.dtype, x, work.n - done);
    x[0] += kDotSums * item_size(source.dtype);
    work.gradient += kDotSums * item_size(work.dtype);
  }
  out.put(work, k, dot_join(sums[0]));
}

// Asks for the gradient's part of a tile to be brought into the second-level cache: its readers, who also wait for
// their sources, would otherwise all wait for the same line in turn.
__device__ __forceinline__ void dot_prefetch(const char* gradient, uint32_t bytes, uint32_t lane) {
#if defined(__CUDACC__)
  for (uint32_t at = lane * 128; at < bytes; at += 32 * 128) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(gradient + at));
  }
#else
  (void)gradient, (void)bytes, (void)lane;
#endif
}

// Warp i: one tile, one group of sources. sums: [count, tiles].
__global__ void __launch_bounds__(kDotThreads, 2) dots_kernel(const char* table, DotTableShape shape, double* sums) {
  uint64_t item = static_cast<uint64_t>(blockIdx.x) * kDotWarps + threadIdx.x / 32;
  if (item >= static_cast<uint64_t>(shape.tiles) * shape.groups) return;
  DotSumsAt out{sums, shape.tiles};
  DotWork work;
  work.tile = static_cast<uint32_t>(item / shape.groups);
  work.lane = threadIdx.x % 32;
  uint32_t row = reinterpret_cast<const uint32_t*>(table + shape.tiles_at)[work.tile];
  const DotSegment& segment = reinterpret_cast<const DotSegment*>(table + shape.segments_at)[row];
  work.in_segment = work.tile - segment.first_tile;
  uint64_t begin = static_cast<uint64_t>(work.in_segment) * kDotTile;
  work.n = static_cast<uint32_t>(segment.n - begin < kDotTile ? segment.n - begin : kDotTile);
  work.dtype = segment.dtype;
  work.gradient = dot_place(work, segment.gradient, work.dtype);
  uint32_t k = static_cast<uint32_t>(item % shape.groups) * kDotWarpGroup;
  if (k == 0) {
    uint32_t size = static_cast<uint32_t>(item_size(work.dtype));
    dot_prefetch(work.gradient - work.lane * kDotLaneSums * size, work.n * size, work.lane);
  }
  const DotSource* source =
      reinterpret_cast<const DotSource*>(table + shape.sources_at) + static_cast<uint64_t>(row) * shape.count + k;
  if (segment.access == kDotWide && source->together != 0) {
    dot_sources<kDotWarpGroup, true>(work, source, k, out);
    return;
  }
  uint32_t end = shape.count - k < kDotWarpGroup ? shape.count : k + kDotWarpGroup;
  for (; k < end; ++k, ++source) {
    uint8_t access = source->access < segment.access ? source->access : segment.access;
    if (access == kDotWide) {
      dot_sources<1, true>(work, source, k, out);
    } else if (access == kDotElements) {
      dot_sources<1, false>(work, source, k, out);
    } else {
      dot_bytes(work, *source, k, out);
    }
  }
}

// Warp i: segment i % segments with source i / segments, from the sums of its tiles. out: [count, segments].
__global__ void __launch_bounds__(kDotThreads)
    join_dots_kernel(const char* table, DotTableShape shape, const double* sums, double* out) {
  uint64_t item = static_cast<uint64_t>(blockIdx.x) * kDotWarps + threadIdx.x / 32;
  if (item >= static_cast<uint64_t>(shape.count) * shape.segments) return;
  uint32_t lane = threadIdx.x % 32;
  uint64_t k = item / shape.segments;
  const DotSegment& segment = reinterpret_cast<const DotSegment*>(table + shape.segments_at)[item % shape.segments];
  const double* tiles = sums + k * shape.tiles + segment.first_tile;
  double joined[1][kDotLaneSums];
  dot_clear(joined);
  for (uint32_t first = 0; first < segment.tiles; first += kDotSums) {
#pragma unroll
    for (int i = 0; i < kDotLaneSums; ++i) {
      uint32_t at = first + lane * kDotLaneSums + i;
      if (at < segment.tiles) joined[0][i] += tiles[at];
    }
  }
  double sum = dot_join(joined[0]);
  if (lane == 0) out[item] = canonical_f64(sum + 0.0);
}

}  // namespace device
}  // namespace soup
