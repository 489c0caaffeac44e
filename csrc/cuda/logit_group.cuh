// SPDX-License-Identifier: MIT
// The lanes that share a row of logits, and what they find out together.
#pragma once

#include "../logit_row.h"

namespace soup {
namespace cuda {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kNobody = 1 << 30;

// What a warp holds in shared memory: strips of values, each with its sums beside it. So a quarter of a warp meets all
// banks at once: every other strip starts half a row of banks later.
constexpr int kPitch = static_cast<int>(kStrip + kSums);
template <class T>
constexpr int kStripsPerWarp = sizeof(T) == 4 ? 32 : 16;
// Warps of a block: together they hold a block of classes.
template <class T>
constexpr int kWarpsPerBlock = static_cast<int>(kLogitBlock / kStrip) / kStripsPerWarp<T>;

// How the rows are dealt out. A tile is what a warp, or all warps of a block together, does at once: `rows` rows, each
// by `lanes` lanes of a warp.
struct LogitGrid {
  unsigned long long items;  // a block of classes of a row of a candidate
  unsigned long long tiles;
  unsigned inner_limit, middle_limit;  // of the numbers that make up an item's place
  unsigned blocks;                     // of classes, in a row
  unsigned reciprocal;                 // of strips: n / strips is n * reciprocal >> 16 for what numbers there are
  int lanes, rows, strips;             // strips: of a row's block, at most
  bool together;
  unsigned char order;
};
// Which of candidate, row and block are innermost, middle and outermost in the order of the items.
enum : unsigned char { kRowInCandidate = 0, kCandidateInBlockInRow = 1, kBlockInRowInCandidate = 2 };

// NaN where one of them is.
__device__ __forceinline__ float larger(float a, float b) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return a != a ? a : (b > a || b != b ? b : a);
#endif
}
__device__ __forceinline__ double larger(double a, double b) { return a != a ? a : (b > a || b != b ? b : a); }

// The next number below; of -inf a NaN, below which nothing is.
__device__ __forceinline__ float below(float x) {
  if (x == 0.0f) return bit_cast<float>(0x80000001u);
  return bit_cast<float>(bit_cast<uint32_t>(x) + (x > 0.0f ? 0xFFFFFFFFu : 1u));
}
__device__ __forceinline__ double below(double x) {
  if (x == 0.0) return bit_cast<double>(0x8000000000000001ull);
  return bit_cast<double>(bit_cast<uint64_t>(x) + (x > 0.0 ? 0xFFFFFFFFFFFFFFFFull : 1ull));
}

// What kLanes neighbours have, joined.
template <int kLanes, class T, class Join>
__device__ __forceinline__ T joined_lanes(T x, const Join& join) {
  SOUP_UNROLL
  for (int other = kLanes / 2; other > 0; other /= 2) x = join(x, __shfl_xor_sync(kAllLanes, x, other));
  return x;
}

// Where warps that work together leave what each has found.
template <class T>
struct Boxes {
  T value[kWarpsPerBlock<T>];
  int number[kWarpsPerBlock<T>];
};

// The lanes of one row: `lanes` neighbours in a warp, or, together, the whole block. Every lane of a warp takes part in
// each of the calls, and together every lane of the block.
template <class T>
class Group {
 public:
  __device__ Group(const LogitGrid& grid, Boxes<T>& boxes)
      : boxes_(boxes), lanes_(grid.lanes), together_(grid.together) {
    int thread = static_cast<int>(threadIdx.x);
    warp_ = thread / 32;
    lane_ = thread % 32;
    member_ = together_ ? thread : lane_ & (lanes_ - 1);
  }

  __device__ int warp() const { return warp_; }
  __device__ int lane() const { return lane_; }
  __device__ int member() const { return member_; }
  __device__ int row() const { return together_ ? 0 : lane_ / lanes_; }
  __device__ int size() const { return together_ ? 32 * kWarpsPerBlock<T> : lanes_; }
  __device__ int size_log2() const { return __ffs(size()) - 1; }

  // What was written to shared memory can be read by all.
  __device__ void sync() const {
    if (together_) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }

  __device__ T largest(T x) const {
    for (int other = lanes_ >> 1; other > 0; other >>= 1) x = larger(x, __shfl_xor_sync(kAllLanes, x, other));
    return across(boxes_.value, x, [](T a, T b) { return larger(a, b); });
  }
  __device__ int sum(int x) const {
    for (int other = lanes_ >> 1; other > 0; other >>= 1) x += __shfl_xor_sync(kAllLanes, x, other);
    return across(boxes_.number, x, [](int a, int b) { return a + b; });
  }
  __device__ int least(int x) const {
    for (int other = lanes_ >> 1; other > 0; other >>= 1) x = min(x, __shfl_xor_sync(kAllLanes, x, other));
    return across(boxes_.number, x, [](int a, int b) { return a < b ? a : b; });
  }
  // The first member for whom it is true, or kNobody.
  __device__ int first(bool here) const {
    unsigned found = __ballot_sync(kAllLanes, here ? 1 : 0);
    found = found >> (lane_ & ~(lanes_ - 1)) & (kAllLanes >> (32 - lanes_));
    int number = found == 0 ? kNobody : __ffs(static_cast<int>(found)) - 1 + (together_ ? 32 * warp_ : 0);
    return across(boxes_.number, number, [](int a, int b) { return a < b ? a : b; });
  }
  // Whether it is true in some group of those that must not part.
  __device__ bool any(bool in_group) const {
    return together_ ? in_group : __any_sync(kAllLanes, in_group ? 1 : 0) != 0;
  }

 private:
  template <class V, class Join>
  __device__ V across(V* box, V x, Join join) const {
    if (!together_) return x;
    if (lane_ == 0) box[warp_] = x;
    __syncthreads();
    V result = box[0];
    for (int w = 1; w < kWarpsPerBlock<T>; ++w) result = join(result, box[w]);
    __syncthreads();
    return result;
  }

  Boxes<T>& boxes_;
  int lanes_, warp_, lane_, member_;
  bool together_;
};

// The next item's place, without dividing.
struct Place {
  unsigned inner, middle, outer;
  __device__ Place(const LogitGrid& grid, unsigned long long item) {
    inner = static_cast<unsigned>(item % grid.inner_limit);
    unsigned long long rest = item / grid.inner_limit;
    middle = static_cast<unsigned>(rest % grid.middle_limit);
    outer = static_cast<unsigned>(rest / grid.middle_limit);
  }
  __device__ void advance(const LogitGrid& grid, unsigned step) {
    inner += step;
    while (inner >= grid.inner_limit) {
      inner -= grid.inner_limit;
      if (++middle == grid.middle_limit) {
        middle = 0;
        ++outer;
      }
    }
  }
  __device__ unsigned candidate(const LogitGrid& grid) const {
    return grid.order == kCandidateInBlockInRow ? inner : outer;
  }
  __device__ unsigned row(const LogitGrid& grid) const {
    return grid.order == kRowInCandidate ? inner : grid.order == kCandidateInBlockInRow ? outer : middle;
  }
  __device__ unsigned block(const LogitGrid& grid) const {
    return grid.order == kRowInCandidate ? 0 : grid.order == kCandidateInBlockInRow ? middle : inner;
  }
};

}  // namespace cuda
}  // namespace soup
