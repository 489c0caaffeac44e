// SPDX-License-Identifier: MIT
// Elements from one strided layout into another: how a transposed or sliced tensor becomes plain bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace soup {

// Where the elements of one side are: the first `offset` bytes into `bytes` bytes of memory, the others by `strides`,
// counted in elements, one a dimension.
struct StridedSide {
  char* memory;
  std::uint64_t bytes;
  std::uint64_t offset;
  std::vector<std::uint64_t> strides;
};

constexpr std::size_t kMostDimensions = 64;  // as in torch and numpy

// Copies every element of `shape`; elements have 1, 2, 4, 8 or 16 bytes and any alignment. Nothing is taken on trust
// but the memory itself: throws Error(kInvalid), before anything is written, where a side leaves its memory, where
// elements of dst overlap (each dimension must step over all that the smaller steps reach), and where the touched
// ranges of dst and src do. src is only read.
void strided_copy(const StridedSide& dst, const StridedSide& src, const std::vector<std::uint64_t>& shape,
                  std::uint64_t itemsize);

}  // namespace soup
