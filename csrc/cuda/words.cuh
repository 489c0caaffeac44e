// SPDX-License-Identifier: MIT
// Chunks of elements in and out of memory as 32-bit words, by accesses as wide as alignment allows. Loads and stores
// pass by the caches: a sum reads and writes everything once. Never through the read-only path: a sum may be in place.
#pragma once

#include "../element.h"
#include "launch.h"

namespace soup {
namespace device {

template <int kCount>
struct Words {
  uint32_t at[kCount];
};

// The aligned chunk number `chunk`, of 16, 8, 4 or 2 bytes: as many times 8, 4, 2 or 1 as it has elements.
template <int kElements>
__device__ __forceinline__ Words<4> load_vector(uint64_t address, uint32_t chunk, uint32_t bytes) {
  Words<4> words;
  words.at[1] = words.at[2] = words.at[3] = 0;
  if (bytes == 16) {
    uint4 v = __ldcs(reinterpret_cast<const uint4*>(address) + chunk);
    words.at[0] = v.x, words.at[1] = v.y, words.at[2] = v.z, words.at[3] = v.w;
  } else if (kElements == 8 || bytes == 8) {
    uint2 v = __ldcs(reinterpret_cast<const uint2*>(address) + chunk);
    words.at[0] = v.x, words.at[1] = v.y;
  } else if (kElements == 4 || bytes == 4) {
    words.at[0] = __ldcs(reinterpret_cast<const unsigned*>(address) + chunk);
  } else {
    words.at[0] = __ldcs(reinterpret_cast<const unsigned short*>(address) + chunk);
  }
  return words;
}

template <uint32_t kBytes>
__device__ inline void store_vector(uint64_t address, const Words<4>& words) {
  if constexpr (kBytes == 16) {
    __stcs(reinterpret_cast<uint4*>(address), make_uint4(words.at[0], words.at[1], words.at[2], words.at[3]));
  } else if constexpr (kBytes == 8) {
    __stcs(reinterpret_cast<uint2*>(address), make_uint2(words.at[0], words.at[1]));
  } else if constexpr (kBytes == 4) {
    __stcs(reinterpret_cast<unsigned*>(address), words.at[0]);
  } else {
    static_assert(kBytes == 2, "a chunk has 2, 4, 8 or 16 bytes");
    __stcs(reinterpret_cast<unsigned short*>(address), static_cast<unsigned short>(words.at[0]));
  }
}

template <class T>
__device__ inline uint32_t load_within(uint64_t address, uint32_t at, uint32_t from, uint32_t to) {
  bool inside = from <= at && at + sizeof(T) <= to;
  return inside ? __ldcs(reinterpret_cast<const T*>(address + at)) : 0;
}

// Bytes [from, to) of a chunk, and 0 for the rest, by accesses of `width` (1, 2 or 4) bytes. All three are multiples of
// it, the address as well.
template <int kCount>
__device__ inline Words<kCount> load_part(uint64_t address, uint32_t width, uint32_t from, uint32_t to) {
  Words<kCount> words;
#pragma unroll
  for (uint32_t i = 0; i < kCount; ++i) {
    uint32_t b = 4 * i;
    uint32_t word = 0;
    if (width == 4) {
      word = load_within<unsigned>(address, b, from, to);
    } else if (width == 2) {
      word = load_within<unsigned short>(address, b, from, to);
      word |= load_within<unsigned short>(address, b + 2, from, to) << 16;
    } else {
#pragma unroll
      for (uint32_t j = 0; j < 4; ++j) word |= load_within<unsigned char>(address, b + j, from, to) << 8 * j;
    }
    words.at[i] = word;
  }
  return words;
}

template <class T>
__device__ inline void store_within(uint64_t address, uint32_t at, uint32_t from, uint32_t to, uint32_t bits) {
  bool inside = from <= at && at + sizeof(T) <= to;
  if (inside) __stcs(reinterpret_cast<T*>(address + at), static_cast<T>(bits));
}

// The other way round.
template <int kCount>
__device__ inline void store_part(uint64_t address, uint32_t width, uint32_t from, uint32_t to,
                                  const Words<kCount>& words) {
#pragma unroll
  for (uint32_t i = 0; i < kCount; ++i) {
    uint32_t b = 4 * i;
    if (width == 4) {
      store_within<unsigned>(address, b, from, to, words.at[i]);
    } else if (width == 2) {
      store_within<unsigned short>(address, b, from, to, words.at[i] & 0xFFFFu);
      store_within<unsigned short>(address, b + 2, from, to, words.at[i] >> 16);
    } else {
#pragma unroll
      for (uint32_t j = 0; j < 4; ++j) {
        store_within<unsigned char>(address, b + j, from, to, words.at[i] >> 8 * j & 0xFFu);
      }
    }
  }
}

}  // namespace device
}  // namespace soup
