// SPDX-License-Identifier: MIT
// What warps keep in shared memory while they score rows, and the steps on a few values.
#pragma once

#include "logit_group.cuh"

namespace soup {
namespace cuda {

// Where element i of a row is in shared memory.
__device__ __forceinline__ int spot(int i) { return i + i / static_cast<int>(kStrip) * static_cast<int>(kSums); }

// What a row, or a block of it, comes to; kept until there are as many as a warp has lanes.
template <class T>
struct Found {
  double sum;  // of the exponentials
  unsigned long long at;
  T target, best, second;
  int ahead;  // -1: a NaN, -2: ignored
  int best_at;
};
constexpr unsigned long long kAbsent = ~0ull;

// To where it belongs: the scores of a row of one block, else the block's state.
template <class T>
__device__ void write_found(const LogitArgs& args, unsigned blocks, const Found<T>& found, RowState* states) {
  if (found.at == kAbsent) return;
  double best = found.best, second = found.second;
  double relative = is_infinite(best) || is_infinite(second) ? 0.0 : found.sum - 1.0;
  RowState state = {found.target, best, second, relative, found.best_at, found.ahead, found.ahead == -1};
  if (blocks > 1) {
    states[found.at] = state;
  } else if (found.ahead == -2) {
    write_ignored(args, found.at);
  } else {
    write_row(args, state, found.at, true, args.confidence != nullptr || args.nll != nullptr);
  }
}

// kKeeps: values are kept, for more than ranks. kBase: those of a base are, while candidates pass by; not in f64, where
// there is no room for them.
template <class T, bool kKeeps, bool kBase>
struct Area {
  static constexpr int kWarps = kKeeps ? kWarpsPerBlock<T> : 1;
  static constexpr int kValues = kWarpsPerBlock<T> * kStripsPerWarp<T> * kPitch;
  alignas(16) T values[kKeeps ? kValues : 4];
  alignas(16) T base[kBase && sizeof(T) == 4 ? kValues : 4];
  Found<T> found[kWarps][kKeeps ? 32 : 1];
  T second[kWarps][kKeeps ? 32 : 1];  // of the rows of a tile
  Boxes<T> boxes;
};

// Blocks that a processor runs at once: what shared memory allows.
template <class T, bool kBase, bool kRanks>
constexpr int kBlocksAtOnce = sizeof(T) == 8     ? 4
                              : kBase && !kRanks ? 5
                                                 : 8;

// Of what is no NaN.
__device__ __forceinline__ float max_of(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double max_of(double a, double b) { return fmax(a, b); }
__device__ __forceinline__ float min_of(float a, float b) { return fminf(a, b); }
__device__ __forceinline__ double min_of(double a, double b) { return fmin(a, b); }

// Lanes of one, as the vectors of the CPU kernels.
template <class T>
struct OneLane {
  using Scalar = T;
  using V = T;
  static __device__ __forceinline__ T broadcast(T x) { return x; }
  static __device__ __forceinline__ T max(T a, T b) { return max_of(a, b); }
  static __device__ __forceinline__ T sub(T a, T b) { return a - b; }
  static __device__ __forceinline__ T fma_each(T a, T b, T c) { return fused_multiply_add(a, b, c); }
  static __device__ __forceinline__ float scaled(float p, float t) {
    return bit_cast<float>(bit_cast<uint32_t>(p) + (bit_cast<uint32_t>(t) << 23));
  }
  static __device__ __forceinline__ double scaled(double p, double t) {
    return bit_cast<double>(bit_cast<uint64_t>(p) + (bit_cast<uint64_t>(t) << 52));
  }
};

// How many of the values of elements first, first + 1, ... are ahead of the label. Counted in T, for a unit that has
// less to do.
template <int kCount, class T>
__device__ __forceinline__ int ahead_of(const T* values, int first, T target, int label) {
  T ahead = 0;
  bool inside = first <= label && label < first + kCount;
  if (inside || target - target != T(0)) {
    SOUP_UNROLL
    for (int i = 0; i < kCount; ++i) {
      if (values[i] > target || (values[i] == target && first + i < label)) ahead += T(1);
    }
  } else {
    T limit = first < label ? below(target) : target;  // before the label an equal one is ahead
    SOUP_UNROLL
    for (int i = 0; i < kCount; ++i) {
      if (values[i] > limit) ahead += T(1);
    }
  }
  return static_cast<int>(ahead);
}

// Values in shared memory. A pointer that steps by these shows the compiler that one instruction moves 16 bytes.
template <class T>
constexpr int kWord = static_cast<int>(16 / sizeof(T));
template <class T>
struct alignas(16) Word {
  T v[kWord<T>];
};
template <class T>
struct alignas(16) Four {
  T v[4];
};

template <class T>
__device__ __forceinline__ void store4(T* p, const T* values) {
  *reinterpret_cast<Four<T>*>(p) = Four<T>{{values[0], values[1], values[2], values[3]}};
}
template <class T>
__device__ __forceinline__ void load4(const T* p, T* values) {
  Four<T> four = *reinterpret_cast<const Four<T>*>(p);
  SOUP_UNROLL
  for (int i = 0; i < 4; ++i) values[i] = four.v[i];
}

// The same for rows that are kept in registers (logit_rows.cuh): kLanes lanes hold a row, or a block of classes of it,
// each of them kSteps strips by four.
template <bool kBase>
constexpr int kRowWarps = kBase ? 2 : 4;  // of a block; they know nothing of each other
// On a processor: what registers allow.
template <int kSteps, bool kBase>
constexpr int kRowBlocksAtOnce = kBase         ? 8
                                 : kSteps == 4 ? 5
                                               : 4;
template <int kLanes, int kSteps, bool kBase>
struct RowArea {
  static constexpr int kRows = 32 / kLanes;
  static constexpr int kStrips = kLanes / 4 * kSteps;
  static constexpr int kPitch = kStrips * static_cast<int>(kSums) + 16;  // of a row: two meet all banks
  static constexpr int kFourWords = kBase ? 4 : 2;                       // that hold four neighbours
  static constexpr int kLaneWords = kSteps * 4 * kFourWords;
  alignas(16) float sums[kRows * kPitch];
  alignas(16) uint32_t words[kRows][kLaneWords];             // those of the lane with the largest value
  Four<float> base[kBase ? kSteps * 4 : 1][kBase ? 32 : 1];  // each lane's own
  Found<float> found[32];
};

// kCount values, one side of which is in shared memory and starts at a multiple of 16 bytes.
template <int kCount, class T>
__device__ __forceinline__ void move(T* to, const T* from) {
  SOUP_UNROLL
  for (int i = 0; i < kCount; i += kWord<T>) {
    *reinterpret_cast<Word<T>*>(to + i) = *reinterpret_cast<const Word<T>*>(from + i);
  }
}

}  // namespace cuda
}  // namespace soup
