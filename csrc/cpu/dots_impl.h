// SPDX-License-Identifier: MIT
// Inner products of one tile (the contract is in kernels.h), written once over lanes as kernels_impl.h is, and included
// after it.
#pragma once

// Elements per pass over the sums of a source: with those of a group (16 KiB) and the gradient (4 KiB) they stay in the
// first-level cache. Measured, as the next two: of 256 to 2048, 512 is the fastest.
constexpr size_t kDotBlock = 512;
// Sources per pass over the gradient.
constexpr size_t kDotGroup = 8;
// Bytes fetched ahead in the stream of a source, into the second-level cache: the first-level one is full.
constexpr size_t kDotPrefetch = 4096;
// Vectors of sums held in registers.
constexpr size_t kDotUnroll = 8;

// sums[j] += the products of elements j, j + 256, ... of some whole strips of 256.
template <class L, uint8_t kType>
static void fold_strips(double* sums, const double* gradient, bool exact, const char* p, size_t strips) {
  constexpr size_t w = L::kWidth;
  constexpr size_t size = kType == kF64 ? 8 : kType == kF32 ? 4 : (kType == kF16 || kType == kBF16) ? 2 : 1;
  constexpr size_t step = kDotUnroll * w;
  // Lines are fetched in order and evenly spread: too many at once would wait for one another.
  const char* ahead = p + kDotPrefetch;
  for (size_t j = 0; j < kDotSums; j += step) {
    typename L::V s[kDotUnroll];
    for (size_t u = 0; u < kDotUnroll; ++u) s[u] = L::load(sums + j + u * w);
    for (size_t i = j; i < strips * kDotSums; i += kDotSums, ahead += step * size) {
      for (size_t line = 0; line < step * size; line += 64) __builtin_prefetch(ahead + line, 0, 2);
      for (size_t u = 0; u < kDotUnroll; ++u) {
        typename L::V x = L::template load_as<kType>(p + (i + u * w) * size);
        s[u] = L::multiply_add(L::load(gradient + i + u * w), x, s[u], exact);
      }
    }
    for (size_t u = 0; u < kDotUnroll; ++u) L::store(sums + j + u * w, s[u]);
  }
}

// The same for n elements, the gradient having zeros after them up to a whole strip.
template <class L, uint8_t kType>
static void fold(double* sums, const double* gradient, bool exact, const char* p, size_t n) {
  size_t size = item_size(kType);
  size_t whole = n / kDotSums * kDotSums;
  fold_strips<L, kType>(sums, gradient, exact, p, whole / kDotSums);
  if (whole == n) return;
  alignas(64) char padded[kDotSums * 8];
  __builtin_memset(padded, 0, kDotSums * size);
  __builtin_memcpy(padded, p + whole * size, (n - whole) * size);
  fold_strips<L, kType>(sums, gradient + whole, exact, padded, 1);
}

template <class L>
static void fold_any(uint8_t type, double* sums, const double* gradient, bool exact, const char* p, size_t n) {
  switch (type) {
    case kF64:
      return fold<L, kF64>(sums, gradient, false, p, n);
    case kF32:
      return fold<L, kF32>(sums, gradient, exact, p, n);
    case kF16:
      return fold<L, kF16>(sums, gradient, exact, p, n);
    case kBF16:
      return fold<L, kBF16>(sums, gradient, exact, p, n);
    case kF8E4M3:
      return fold<L, kF8E4M3>(sums, gradient, exact, p, n);
    default:
      return fold<L, kF8E5M2>(sums, gradient, exact, p, n);
  }
}

// The tree of neighbours; overwrites the sums.
static double join_neighbours(double* sums) {
  for (size_t left = kDotSums / 2; left > 0; left /= 2) {
    for (size_t i = 0; i < left; ++i) sums[i] = sums[2 * i] + sums[2 * i + 1];
  }
  return sums[0];
}

// n elements of the gradient in f64, zeros after them up to a whole strip.
template <class L>
static void widen_gradient(double* out, const DotTileArgs& args, size_t begin, size_t n) {
  const char* p = static_cast<const char*>(args.gradient) + begin * item_size(args.gradient_dtype);
  double one = 1.0;
  accumulate_any<L>(args.gradient_dtype, out, &p, &one, 1, n, true);
  for (size_t i = n; i % kDotSums != 0; ++i) out[i] = 0.0;
}

template <class L>
static void dot_tile_lanes(const DotTileArgs& args) {
  alignas(64) double sums[kDotGroup][kDotSums];
  alignas(64) double gradient[kDotBlock];
  bool exact = args.gradient_dtype != kF64;
  for (size_t first = 0; first < args.count; first += kDotGroup) {
    size_t members = args.count - first < kDotGroup ? args.count - first : kDotGroup;
    __builtin_memset(sums, 0, members * sizeof(sums[0]));
    for (size_t begin = 0; begin < args.n; begin += kDotBlock) {
      size_t n = args.n - begin < kDotBlock ? args.n - begin : kDotBlock;
      widen_gradient<L>(gradient, args, begin, n);
      for (size_t k = 0; k < members; ++k) {
        uint8_t type = args.dtypes[first + k];
        const char* x = static_cast<const char*>(args.sources[first + k]) + begin * item_size(type);
        fold_any<L>(type, sums[k], gradient, exact, x, n);
      }
    }
    for (size_t k = 0; k < members; ++k) args.sums[(first + k) * args.stride] = join_neighbours(sums[k]);
  }
}

static void dot_tile(const DotTileArgs& args) { dot_tile_lanes<LanesF64>(args); }
