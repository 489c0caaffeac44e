// SPDX-License-Identifier: MIT
#include "strided.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "../errors.h"

namespace soup {
namespace {

struct Dimension {
  std::uint64_t n, dst, src;  // elements, and bytes from one to the next
};

Error invalid(const std::string& what) { return Error(ErrorKind::kInvalid, "strided copy: " + what); }

std::uint64_t add(std::uint64_t a, std::uint64_t b) {
  std::uint64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) throw invalid("sizes overflow");
  return sum;
}

std::uint64_t multiply(std::uint64_t a, std::uint64_t b) {
  std::uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) throw invalid("sizes overflow");
  return product;
}

// Bytes from the first element's first to the last one's last; all of them inside the memory.
std::uint64_t checked_span(const StridedSide& side, const std::vector<std::uint64_t>& shape, std::uint64_t itemsize,
                           const char* name) {
  std::uint64_t span = itemsize;
  for (std::size_t d = 0; d < shape.size(); ++d) {
    if (shape[d] > 1) span = add(span, multiply(shape[d] - 1, multiply(side.strides[d], itemsize)));
  }
  if (add(side.offset, span) > side.bytes) {
    throw invalid(std::string(name) + " leaves its memory: found " + std::to_string(side.bytes) + " bytes, expected " +
                  std::to_string(side.offset + span));
  }
  return span;
}

void refuse_shared(const StridedSide& dst, std::uint64_t dst_span, const StridedSide& src, std::uint64_t src_span) {
  std::uintptr_t written = reinterpret_cast<std::uintptr_t>(dst.memory) + dst.offset;
  std::uintptr_t read = reinterpret_cast<std::uintptr_t>(src.memory) + src.offset;
  if (written < read + src_span && read < written + dst_span) throw invalid("dst and src share memory");
}

// The dimensions by falling dst stride, without those of one element, neighbours merged where both sides go on.
std::vector<Dimension> normalised(const StridedSide& dst, const StridedSide& src,
                                  const std::vector<std::uint64_t>& shape, std::uint64_t itemsize) {
  std::vector<Dimension> given;
  for (std::size_t d = 0; d < shape.size(); ++d) {
    if (shape[d] > 1) given.push_back({shape[d], dst.strides[d] * itemsize, src.strides[d] * itemsize});
  }
  std::stable_sort(given.begin(), given.end(), [](const Dimension& a, const Dimension& b) { return a.dst > b.dst; });
  std::vector<Dimension> merged;  // innermost first
  std::uint64_t reached = itemsize;
  for (auto dimension = given.rbegin(); dimension != given.rend(); ++dimension) {
    if (dimension->dst < reached) throw invalid("elements of dst overlap");
    reached += (dimension->n - 1) * dimension->dst;
    Dimension* inner = merged.empty() ? nullptr : &merged.back();
    if (inner != nullptr && dimension->dst == inner->n * inner->dst && dimension->src == inner->n * inner->src) {
      inner->n *= dimension->n;
    } else {
      merged.push_back(*dimension);
    }
  }
  std::reverse(merged.begin(), merged.end());
  return merged;
}

template <std::size_t kSize>
void copy_item(char* dst, const char* src) {
  std::memcpy(dst, src, kSize);
}

// Bytes that are moved sooner than memcpy is called.
constexpr std::uint64_t kShortRow = 32;

// Dimensions come by value: stores of bytes might change what a reference refers to, for all the compiler knows.
template <std::size_t kSize>
void copy_row(char* dst, const char* src, Dimension row) {
  if (row.dst == kSize && row.src == kSize && row.n * kSize > kShortRow) {
    std::memcpy(dst, src, row.n * kSize);
  } else if (row.dst == kSize) {
    for (std::uint64_t i = 0; i < row.n; ++i) copy_item<kSize>(dst + i * kSize, src + i * row.src);
  } else {
    for (std::uint64_t i = 0; i < row.n; ++i) copy_item<kSize>(dst + i * row.dst, src + i * row.src);
  }
}

// Edge of a tile in elements.
template <std::size_t kSize>
constexpr std::uint64_t tile_edge() {
  return kSize <= 8 ? 32 : 16;
}
// Edge of a block of tiles: as many rows, each on a page of its own, as the processor keeps translations for.
constexpr std::uint64_t kBlock = 256;
// With fewer rows or columns than this no cache is too small, and a tile would be mostly empty.
constexpr std::uint64_t kFewest = 12;

// The rows of a tile that comes next.
template <std::size_t kSize, bool kWrite>
void prefetch_tile(const char* rows, std::uint64_t n, std::uint64_t stride) {
  for (std::uint64_t r = 0; r < n; ++r) {
    for (std::uint64_t line = 0; line < tile_edge<kSize>() * kSize; line += 64) {
      __builtin_prefetch(rows + r * stride + line, kWrite ? 1 : 0, 2);
    }
  }
}

// A tile goes through a buffer in the first-level cache, so that each side is touched by whole lines: the rows of a
// matrix often lie a power of two apart, where few of them fit into that cache together. Measured on matrices of 4,096
// rows and columns: 1.3 to 1.8 times the speed of a direct loop over the same tiles.
template <std::size_t kSize>
void copy_tile(char* dst, const char* src, Dimension across, Dimension along) {
  constexpr std::uint64_t kEdge = tile_edge<kSize>();
  alignas(64) char tile[kEdge * kEdge * kSize];
  for (std::uint64_t c = 0; c < along.n; ++c) {
    const char* line = src + c * along.src;
    char* column = tile + c * kSize;
    if (across.src == kSize) {
      for (std::uint64_t r = 0; r < across.n; ++r) copy_item<kSize>(column + r * kEdge * kSize, line + r * kSize);
    } else {
      for (std::uint64_t r = 0; r < across.n; ++r) copy_item<kSize>(column + r * kEdge * kSize, line + r * across.src);
    }
  }
  for (std::uint64_t r = 0; r < across.n; ++r) {
    char* row = dst + r * across.dst;
    if (along.n == kEdge && along.dst == kSize) {
      std::memcpy(row, tile + r * kEdge * kSize, kEdge * kSize);  // of constant size: a few moves, no call
    } else {
      copy_row<kSize>(row, tile + r * kEdge * kSize, {along.n, along.dst, kSize});
    }
  }
}

template <std::size_t kSize>
void copy_tiles(char* dst, const char* src, Dimension across, Dimension along) {
  constexpr std::uint64_t kEdge = tile_edge<kSize>();
  for (std::uint64_t r = 0; r < across.n; r += kEdge) {
    Dimension rows{std::min(kEdge, across.n - r), across.dst, across.src};
    for (std::uint64_t c = 0; c < along.n; c += kEdge) {
      Dimension columns{std::min(kEdge, along.n - c), along.dst, along.src};
      char* to = dst + r * across.dst + c * along.dst;
      const char* from = src + r * across.src + c * along.src;
      if (along.n - c >= 2 * kEdge) {
        prefetch_tile<kSize, false>(from + kEdge * along.src, kEdge, along.src);
        prefetch_tile<kSize, true>(to + kEdge * along.dst, rows.n, across.dst);
      }
      copy_tile<kSize>(to, from, rows, columns);
    }
  }
}

template <std::size_t kSize>
void copy_rows(char* dst, const char* src, Dimension across, Dimension along) {
  for (std::uint64_t r = 0; r < across.n; ++r) copy_row<kSize>(dst + r * across.dst, src + r * across.src, along);
}

// Two dimensions whose order in memory differs between the sides: `along` runs in dst, `across` in src.
template <std::size_t kSize>
void copy_transposed(char* dst, const char* src, Dimension across, Dimension along) {
  if (std::min(across.n, along.n) < kFewest) return copy_rows<kSize>(dst, src, across, along);
  for (std::uint64_t r = 0; r < across.n; r += kBlock) {
    Dimension rows{std::min(kBlock, across.n - r), across.dst, across.src};
    for (std::uint64_t c = 0; c < along.n; c += kBlock) {
      Dimension columns{std::min(kBlock, along.n - c), along.dst, along.src};
      copy_tiles<kSize>(dst + r * across.dst + c * along.dst, src + r * across.src + c * along.src, rows, columns);
    }
  }
}

// Takes out the dimension with the smallest step in src, other than the last; where the last has a smaller one itself,
// or repeats an element, the next to last.
Dimension take_crossing(std::vector<Dimension>& dims, bool& transposed) {
  std::size_t found = dims.size() - 1;
  for (std::size_t d = 0; d + 1 < dims.size(); ++d) {
    if (dims[d].src != 0 && dims[d].src < dims[found].src) found = d;
  }
  transposed = found + 1 < dims.size();
  if (!transposed) found = dims.size() - 2;
  Dimension crossing = dims[found];
  dims.erase(dims.begin() + static_cast<std::ptrdiff_t>(found));
  return crossing;
}

// Two dimensions by the loops above, the others counted through.
template <std::size_t kSize>
void copy_all(char* dst, const char* src, std::vector<Dimension> dims) {
  while (dims.size() < 2) dims.insert(dims.begin(), {1, 0, 0});
  bool transposed = false;
  Dimension across = take_crossing(dims, transposed);
  Dimension along = dims.back();
  dims.pop_back();
  std::vector<std::uint64_t> index(dims.size(), 0);
  std::uint64_t dst_at = 0;
  std::uint64_t src_at = 0;
  while (true) {
    if (transposed) {
      copy_transposed<kSize>(dst + dst_at, src + src_at, across, along);
    } else {
      copy_rows<kSize>(dst + dst_at, src + src_at, across, along);
    }
    std::size_t d = dims.size();
    for (; d > 0; --d) {
      const Dimension& dimension = dims[d - 1];
      dst_at += dimension.dst;
      src_at += dimension.src;
      if (++index[d - 1] < dimension.n) break;
      index[d - 1] = 0;
      dst_at -= dimension.n * dimension.dst;
      src_at -= dimension.n * dimension.src;
    }
    if (d == 0) return;
  }
}

}  // namespace

void strided_copy(const StridedSide& dst, const StridedSide& src, const std::vector<std::uint64_t>& shape,
                  std::uint64_t itemsize) {
  if (itemsize != 1 && itemsize != 2 && itemsize != 4 && itemsize != 8 && itemsize != 16) {
    throw invalid("item size: found " + std::to_string(itemsize) + ", expected 1, 2, 4, 8 or 16");
  }
  if (shape.size() > kMostDimensions || dst.strides.size() != shape.size() || src.strides.size() != shape.size()) {
    throw invalid("dimensions: found " + std::to_string(shape.size()) + " sizes, " +
                  std::to_string(dst.strides.size()) + " and " + std::to_string(src.strides.size()) +
                  " strides, expected as many of each, " + std::to_string(kMostDimensions) + " at most");
  }
  if (std::find(shape.begin(), shape.end(), 0u) != shape.end()) return;
  std::uint64_t dst_span = checked_span(dst, shape, itemsize, "dst");
  std::uint64_t src_span = checked_span(src, shape, itemsize, "src");
  refuse_shared(dst, dst_span, src, src_span);
  std::vector<Dimension> dims = normalised(dst, src, shape, itemsize);
  char* to = dst.memory + dst.offset;
  const char* from = src.memory + src.offset;
  switch (itemsize) {
    case 1:
      return copy_all<1>(to, from, std::move(dims));
    case 2:
      return copy_all<2>(to, from, std::move(dims));
    case 4:
      return copy_all<4>(to, from, std::move(dims));
    case 8:
      return copy_all<8>(to, from, std::move(dims));
    default:
      return copy_all<16>(to, from, std::move(dims));
  }
}

}  // namespace soup
