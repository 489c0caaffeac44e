// SPDX-License-Identifier: MIT
// THE SEAM between the kernels and everybody else: argument structs and numeric contracts. Plain C types only, so that
// the per-ISA units, which must not instantiate std:: templates, can include it.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "host_device.h"

namespace soup {

// Codes are shared with pysoup/dtypes.py. kRaw is a byte that is copied, never computed with.
enum DType : uint8_t { kF64 = 0, kF32 = 1, kF16 = 2, kBF16 = 3, kF8E4M3 = 4, kF8E5M2 = 5, kRaw = 255 };
constexpr int kFloatTypes = 6;

SOUP_HD constexpr size_t item_size(uint8_t dtype) {
  switch (dtype) {
    case kF64:
      return 8;
    case kF32:
      return 4;
    case kF16:
    case kBF16:
      return 2;
    default:
      return 1;
  }
}

enum Accumulator : uint8_t { kAccF32 = 0, kAccF64 = 1 };

// One contiguous run of elements:  dst[i] = round((w0*x0[i] + w1*x1[i] + ...) / divisor).
//
// Numeric contract, the same bits on every ISA and for every way of cutting a tensor into runs:
//   acc = w0 * x0;  acc = fma(wk, xk, acc) for k = 1.. in index order;  acc = acc / divisor;  one rounding to nearest
//   even into dst. All in the accumulator's type; with every w = 1 this is the plain sum, first source first.
//   Where that is not finite, the element is redone with weights scaled by 2^-16 (f32) or 2^-64 (f64) and scaled back,
//   so a finite mean never overflows on the way. NaN results are the one canonical quiet NaN of dst. f16, bf16, f32,
//   f64 and e5m2 overflow to infinity, e4m3 saturates at +-448. Subnormals are kept: the caller must have set the
//   default floating-point environment (FloatEnvironment in float_environment.h) on the calling thread.
// Returns whether some element of dst became NaN or infinite: a source held such a value, or the mean is beyond the
// range of dst. e4m3 has no infinity: true then means that some result was NaN or infinite before it was stored.
// Caller must: pass f64 sources only with an f64 accumulator; let dst equal a source exactly or not overlap it at all
// (a partial overlap silently corrupts the result).
struct WeightedSumArgs {
  const void* const* sources;  // count pointers, any alignment
  const uint8_t* dtypes;       // count DType codes
  const double* weights_f64;   // count weights, and the same rounded to f32
  const float* weights_f32;
  size_t count;
  size_t n;  // elements
  double divisor;
  void* dst;
  uint8_t dst_dtype;
  uint8_t accumulator;
  bool stream;  // write past the caches: for large destinations that are not read again soon
};

// Rows of logits, each with the number of its right class: how many classes are ahead of that one, and how likely it
// is.
//
// The value of a logit x is x, widened exactly; with a base b it is  scale * fma(weight, x, b),  two roundings, in f32,
// or in f64 where x or b is f64; weight and scale are rounded to that type. Of a row's values v[0..classes), t =
// v[label]:
//   rank = number of i with v[i] > t, or v[i] == t and i < label. The label is in the top k iff rank < k. At most
//   most_rank, where that is not 0: so one need not count further.
//   prediction = the lowest i with v[i] = max v.  second = the largest of the other values, -inf if there are none.
//   margin = t - (rank == 0 ? second : max v), never -0.
//   rest = exp(second - max v) * sum over i != prediction of exp(v[i] - second): what the others weigh, the prediction
//   weighing 1.  confidence = 1 / (1 + rest).  nll = (max v - t) + log1p(rest).
// Relative to `second` the sum loses nothing that is small beside the prediction: nll has a relative error below 1e-6,
// however small it is.
//
// The same bits on every ISA. Blocks of 4096 classes have a best, a second and a sum of their own: e[i] is
// exp(min(v[i] - second, 0)), so 1 for the best, by the polynomial in exp_log.h, and at least 4e-38 (in f64 1e-304),
// which is nothing beside the second, 1; each strip of 64 is added as (e[j] + e[j + 32]) + (e[j + 16] + e[j + 48]) for
// j < 16, in the type of the values; the strips in f64, in order, for each j; these 16 as a tree; less 1 for the best.
// Blocks are joined in order, and all that follows is f64.
//
// A row with a NaN has rank -1, prediction -1 and NaN for the rest. With an infinite maximum confidence and nll are
// NaN, as inf - inf is. A row whose label is ignored has rank -2, prediction -1 and NaN for the rest, and is not read.
//
// The total of a candidate's nll is summed in f64, kTotals sums side by side: row n goes to sum n % kTotals, in the
// order of the rows, ignored rows to none; the sums are joined as a tree, s[i] += s[i + half] for half = kTotals / 2,
// ..., 2, 1. NaN is the canonical one.
// Caller must: have checked the labels; have set the default floating-point environment, as above.
constexpr int kTotals = 256;
struct LogitArgs {
  // Candidate m, row n, class c at logits[m * candidate_stride + n * row_stride + c]; base, if not null, has one
  // candidate. Strides are in elements; any alignment.
  const void* logits;
  const void* base;
  size_t candidate_stride;
  size_t row_stride;
  size_t base_row_stride;
  uint8_t dtype;  // f64, f32, f16, bf16
  uint8_t base_dtype;
  double weight;
  double scale;
  size_t candidates;
  size_t rows;
  size_t classes;
  const int64_t* labels;  // one a row
  bool ignoring;
  int64_t ignore_label;
  int64_t most_rank;
  // Outputs, [candidates, rows] each; all but rank may be null, and what is null is not computed.
  int64_t* rank;
  int64_t* prediction;
  double* margin;
  double* confidence;
  double* nll;
};

// Inner products of one tensor, a gradient, with several others: of elements [0, n) of one tile,
// sums[k * stride] = sum over i of g[i] * x_k[i]. A tile is up to kDotTile elements of one segment.
//
// All in f64, the same bits on every ISA and device. In a tile element i goes to sum i mod 256: s = fma(g[i], x[i], s),
// in order of i, from 0; the 256 are joined as a tree of neighbours, s[i] = s[2i] + s[2i + 1], until one is left. The
// result of a segment is made of its tiles in the same way: tile t is added to sum t mod 256, in order, the tree, + 0.0
// (so it is never -0, and what is absent may count as 0), and a NaN is the canonical one. An empty segment gives 0.
// So the error is at most (80 + tiles / 256) * 2^-53 * sum |g[i] * x[i]|, barring underflow. Where neither g nor x is
// f64 the products are exact, and fma is multiplication and addition.
// 256: a warp's 32 lanes with 8 elements each, one load of 16 bytes of a 16-bit type; and vectors of any width.
// Caller must: have set the default floating-point environment, as above.
constexpr size_t kDotTile = 16384;
constexpr size_t kDotSums = 256;

struct DotTileArgs {
  const void* gradient;        // any alignment, as the sources
  const void* const* sources;  // count pointers
  const uint8_t* dtypes;       // count DType codes
  uint8_t gradient_dtype;
  size_t count;
  size_t n;  // elements, at most kDotTile
  double* sums;
  size_t stride;
};

struct KernelTable {
  const char* name;
  bool (*weighted_sum)(const WeightedSumArgs&);
  // All candidates of rows [first, end). In f64 arithmetic: the generic table's only.
  void (*score_rows)(const LogitArgs&, size_t first, size_t end);
  void (*dot_tile)(const DotTileArgs&);
};

}  // namespace soup
