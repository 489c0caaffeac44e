// SPDX-License-Identifier: MIT
// What blocks of classes come to as rows, and rows as totals (the order is in kernels.h).
#pragma once

#include "../logit_row.h"

namespace soup {
namespace cuda {

// Rows of several blocks of classes: a row a lane. places: more than the rank is wanted.
__global__ void __launch_bounds__(128)
    join_blocks(const LogitArgs args, const RowState* states, unsigned blocks, bool places) {
  bool likelihood = args.confidence != nullptr || args.nll != nullptr;
  size_t rows = args.candidates * args.rows;
  for (size_t at = blockIdx.x * size_t{128} + threadIdx.x; at < rows; at += gridDim.x * size_t{128}) {
    if (args.ignoring && args.labels[at % args.rows] == args.ignore_label) {
      write_ignored(args, at);
      continue;
    }
    const RowState* of_row = states + at * blocks;
    RowState state = of_row[0];
    for (unsigned b = 1; b < blocks && !state.nan; ++b) {
      RowState next = of_row[b];
      next.ahead += state.ahead;
      state = places && !next.nan ? joined(state, next, likelihood) : next;
    }
    write_row(args, state, at, places, likelihood);
  }
}

constexpr int kMostLimits = 16;
struct Limits {
  int64_t k[kMostLimits];
  unsigned count;
};

template <class T>
__device__ T tree_sum(T value, T* sums) {
  sums[threadIdx.x] = value;
  __syncthreads();
  for (unsigned half = kTotals / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  return sums[0];
}

// A candidate by blockIdx.x; of blockIdx.y, a limit each, and the last, where there is one more, the other two.
__global__ void __launch_bounds__(kTotals)
    total_rows(const LogitArgs args, const Limits limits, int64_t* top, int64_t* nan_rows, double* nll) {
  __shared__ int64_t counts[kTotals];
  __shared__ double sums[kTotals];
  const int64_t* rank = args.rank + blockIdx.x * args.rows;
  const double* likelihood = args.nll + blockIdx.x * args.rows;
  bool last = blockIdx.y == limits.count;
  int64_t limit = last ? 0 : limits.k[blockIdx.y];
  bool summing = last && args.nll != nullptr;
  int64_t count = 0;
  double sum = 0.0;
  constexpr int kBatch = 8;  // rows on their way at once
  for (size_t first = threadIdx.x; first < args.rows; first += kBatch * kTotals) {
    int64_t found[kBatch];
    double one[kBatch];
    SOUP_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      size_t n = first + static_cast<size_t>(i * kTotals);
      found[i] = n < args.rows ? rank[n] : -2;
      one[i] = summing && n < args.rows ? likelihood[n] : 0.0;
    }
    SOUP_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      count += last ? found[i] == -1 : found[i] >= 0 && found[i] < limit;
      if (found[i] != -2) sum += one[i];
    }
  }
  count = tree_sum(count, counts);
  if (!last) {
    if (threadIdx.x == 0) top[blockIdx.y * args.candidates + blockIdx.x] = count;
    return;
  }
  if (threadIdx.x == 0) nan_rows[blockIdx.x] = count;
  sum = tree_sum(sum, sums);
  if (threadIdx.x == 0) nll[blockIdx.x] = canonical_f64(sum);
}

}  // namespace cuda
}  // namespace soup
