// SPDX-License-Identifier: MIT
// THE SEAM between the kernels and everybody else: argument structs and numeric contracts. Plain C types only, so that
// the per-ISA units, which must not instantiate std:: templates, can include it.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace soup {

// Codes are shared with pysoup/dtypes.py. kRaw is a byte that is copied, never computed with.
enum DType : uint8_t { kF64 = 0, kF32 = 1, kF16 = 2, kBF16 = 3, kF8E4M3 = 4, kF8E5M2 = 5, kRaw = 255 };
constexpr int kFloatTypes = 6;

static inline size_t item_size(uint8_t dtype) {
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

struct KernelTable {
  const char* name;
  bool (*weighted_sum)(const WeightedSumArgs&);
};

}  // namespace soup
