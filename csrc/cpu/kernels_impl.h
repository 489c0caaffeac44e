// SPDX-License-Identifier: MIT
// The loops, written once. Each kernels_ISA.cpp includes this inside an unnamed namespace after its vec_ISA.h, which
// defines LanesF32, LanesF64, stream_copy and stream_fence: everything here has internal linkage, so no unit can end up
// running another unit's instructions.
#pragma once

// Elements per pass: the accumulators (8 KiB in f64) stay in the first-level cache.
constexpr size_t kBlock = 1024;
// Sources per pass over the accumulators: the hardware prefetcher follows about 32 streams.
constexpr size_t kGroup = 16;
constexpr size_t kUnroll = 4;
// Bytes fetched ahead in every stream. The hardware prefetcher stops at each 4 KiB page, which all streams reach at
// about the same time; measured with 8 streams: 1.13 (f32) to 1.19 (bf16) times the speed of loads alone.
constexpr size_t kPrefetch = 512;

template <class L>
constexpr size_t strip_size() {
  return kUnroll * L::kWidth;
}

// The lines that this strip of a stream is ahead of. Past the end of a source this does nothing: a prefetch cannot
// fault.
static inline void prefetch_strip(const char* p, size_t bytes) {
  for (size_t line = 0; line < bytes; line += 64) __builtin_prefetch(p + kPrefetch + line);
}

// acc[0..n) = or += the weighted sources of one type. Caller must: make n a multiple of the strip.
template <class L, uint8_t kType>
static void accumulate_strips(typename L::Scalar* acc, const char* const* sources, const typename L::Scalar* weights,
                              size_t count, size_t n, bool first) {
  constexpr size_t w = L::kWidth;
  constexpr size_t size = kType == kF64 ? 8 : kType == kF32 ? 4 : (kType == kF16 || kType == kBF16) ? 2 : 1;
  for (size_t j = 0; j < n; j += strip_size<L>()) {
    typename L::V a0, a1, a2, a3;
    size_t k = 0;
    if (first) {
      const char* p = sources[0] + j * size;
      prefetch_strip(p, kUnroll * w * size);
      typename L::V weight = L::broadcast(weights[0]);
      a0 = L::mul(weight, L::template load_as<kType>(p));
      a1 = L::mul(weight, L::template load_as<kType>(p + w * size));
      a2 = L::mul(weight, L::template load_as<kType>(p + 2 * w * size));
      a3 = L::mul(weight, L::template load_as<kType>(p + 3 * w * size));
      k = 1;
    } else {
      a0 = L::load(acc + j);
      a1 = L::load(acc + j + w);
      a2 = L::load(acc + j + 2 * w);
      a3 = L::load(acc + j + 3 * w);
    }
    for (; k < count; ++k) {
      const char* p = sources[k] + j * size;
      prefetch_strip(p, kUnroll * w * size);
      typename L::V weight = L::broadcast(weights[k]);
      a0 = L::fma(weight, L::template load_as<kType>(p), a0);
      a1 = L::fma(weight, L::template load_as<kType>(p + w * size), a1);
      a2 = L::fma(weight, L::template load_as<kType>(p + 2 * w * size), a2);
      a3 = L::fma(weight, L::template load_as<kType>(p + 3 * w * size), a3);
    }
    L::store(acc + j, a0);
    L::store(acc + j + w, a1);
    L::store(acc + j + 2 * w, a2);
    L::store(acc + j + 3 * w, a3);
  }
}

// The same for any n: the last partial strip goes through a zero-padded copy, so no load leaves a source.
template <class L, uint8_t kType>
static void accumulate(typename L::Scalar* acc, const char* const* sources, const typename L::Scalar* weights,
                       size_t count, size_t n, bool first) {
  constexpr size_t strip = strip_size<L>();
  size_t size = item_size(kType);
  size_t whole = n / strip * strip;
  accumulate_strips<L, kType>(acc, sources, weights, count, whole, first);
  if (whole == n) return;
  alignas(64) char padded[kGroup][strip * 8];
  const char* pointers[kGroup];
  for (size_t k = 0; k < count; ++k) {
    __builtin_memset(padded[k], 0, strip * size);
    __builtin_memcpy(padded[k], sources[k] + whole * size, (n - whole) * size);
    pointers[k] = padded[k];
  }
  accumulate_strips<L, kType>(acc + whole, pointers, weights, count, strip, first);
}

template <class L>
static void accumulate_any(uint8_t type, typename L::Scalar* acc, const char* const* sources,
                           const typename L::Scalar* weights, size_t count, size_t n, bool first) {
  switch (type) {
    case kF64:
      if constexpr (sizeof(typename L::Scalar) == 8) accumulate<L, kF64>(acc, sources, weights, count, n, first);
      break;
    case kF32:
      accumulate<L, kF32>(acc, sources, weights, count, n, first);
      break;
    case kF16:
      accumulate<L, kF16>(acc, sources, weights, count, n, first);
      break;
    case kBF16:
      accumulate<L, kBF16>(acc, sources, weights, count, n, first);
      break;
    case kF8E4M3:
      accumulate<L, kF8E4M3>(acc, sources, weights, count, n, first);
      break;
    case kF8E5M2:
      accumulate<L, kF8E5M2>(acc, sources, weights, count, n, first);
      break;
  }
}

// The least magnitude that is no finite number in dst any more: half a unit above the largest one, as a tie goes to the
// even neighbour, which is infinity. Infinity for the accumulator's own type, and for e4m3, which saturates.
template <class T>
static inline T finite_limit(uint8_t dst_dtype) {
  if (dst_dtype == kF16) return T(65520);
  if (dst_dtype == kBF16) return T(0x1.FFp127);
  if (dst_dtype == kF8E5M2) return T(61440);
  if constexpr (sizeof(T) == 8) {
    if (dst_dtype == kF32) return T(0x1.FFFFFFp127);
  }
  return static_cast<T>(__builtin_inf());
}

// Elements whose plain sum is not finite, once more with weights scaled down and the result scaled back (the contract
// in kernels.h). Rare, hence scalar. Returns whether all are below the limit now.
template <class T>
static bool redo_overflows(T* acc, const WeightedSumArgs& args, const T* weights, T limit, size_t begin, size_t n) {
  const T down = sizeof(T) == 4 ? T(0x1p-16) : T(0x1p-64);
  const T up = sizeof(T) == 4 ? T(0x1p16) : T(0x1p64);
  bool below = true;
  for (size_t i = 0; i < n; ++i) {
    if (acc[i] < limit && acc[i] > -limit) continue;
    if (acc[i] - acc[i] == T(0)) {
      below = false;
      continue;
    }
    T sum = 0;
    for (size_t k = 0; k < args.count; ++k) {
      const char* p = static_cast<const char*>(args.sources[k]);
      T x = element_any<T>(args.dtypes[k], p, begin + i);
      T weight = weights[k] * down;
      sum = k == 0 ? weight * x : fused_multiply_add(weight, x, sum);
    }
    acc[i] = (sum / static_cast<T>(args.divisor)) * up;
    below &= acc[i] < limit && acc[i] > -limit;
  }
  return below;
}

// Division by a power of two and multiplication by its inverse are the same correctly rounded number.
static inline bool is_power_of_two(double d) {
  return d >= 1.0 && d <= 0x1p60 && (bit_cast<uint64_t>(d) & 0x000FFFFFFFFFFFFFull) == 0;
}

// Returns whether all magnitudes are below the limit afterwards.
template <class L>
static bool divide(typename L::Scalar* acc, size_t padded, double divisor, typename L::Scalar limit) {
  using T = typename L::Scalar;
  bool below = true;
  typename L::V most = L::broadcast(limit);
  bool by_inverse = is_power_of_two(divisor);
  typename L::V d = L::broadcast(static_cast<T>(by_inverse ? 1.0 / divisor : divisor));
  for (size_t i = 0; i < padded; i += L::kWidth) {
    typename L::V a = L::load(acc + i);
    a = by_inverse ? L::mul(a, d) : L::div(a, d);
    below &= L::all_below(a, most);
    L::store(acc + i, a);
  }
  return below;
}

template <class L, uint8_t kType>
static void store_block(char* dst, const typename L::Scalar* acc, size_t n) {
  constexpr size_t w = L::kWidth;
  size_t size = item_size(kType);
  size_t whole = n / w * w;
  for (size_t i = 0; i < whole; i += w) L::template store_as<kType>(dst + i * size, L::load(acc + i));
  if (whole == n) return;
  alignas(64) char last[w * 8];
  L::template store_as<kType>(last, L::load(acc + whole));
  __builtin_memcpy(dst + whole * size, last, (n - whole) * size);
}

template <class L>
static void store_any(uint8_t type, char* dst, const typename L::Scalar* acc, size_t n) {
  switch (type) {
    case kF64:
      if constexpr (sizeof(typename L::Scalar) == 8) store_block<L, kF64>(dst, acc, n);
      break;
    case kF32:
      store_block<L, kF32>(dst, acc, n);
      break;
    case kF16:
      store_block<L, kF16>(dst, acc, n);
      break;
    case kBF16:
      store_block<L, kBF16>(dst, acc, n);
      break;
    case kF8E4M3:
      for (size_t i = 0; i < n; ++i) put(dst, i, f64_to_f8e4m3(acc[i]));
      break;
    case kF8E5M2:
      for (size_t i = 0; i < n; ++i) put(dst, i, f64_to_f8e5m2(acc[i]));
      break;
  }
}

// All sources of one block into acc: runs of equal type, at most kGroup at a time.
template <class L>
static void accumulate_block(typename L::Scalar* acc, const WeightedSumArgs& args, const typename L::Scalar* weights,
                             size_t begin, size_t n) {
  const char* group[kGroup];
  for (size_t k = 0; k < args.count;) {
    uint8_t type = args.dtypes[k];
    size_t members = 0;
    while (members < kGroup && k + members < args.count && args.dtypes[k + members] == type) {
      group[members] = static_cast<const char*>(args.sources[k + members]) + begin * item_size(type);
      ++members;
    }
    accumulate_any<L>(type, acc, group, weights + k, members, n, k == 0);
    k += members;
  }
}

template <class L>
static bool weighted_sum_lanes(const WeightedSumArgs& args, const typename L::Scalar* weights) {
  using T = typename L::Scalar;
  alignas(64) T acc[kBlock];
  alignas(64) char out[kBlock * 8];
  size_t size = item_size(args.dst_dtype);
  char* dst = static_cast<char*>(args.dst);
  size_t misaligned = reinterpret_cast<uintptr_t>(dst) % 64;
  bool stream = args.stream && misaligned % size == 0;
  const T limit = finite_limit<T>(args.dst_dtype);
  bool below = true;
  // With streaming, a short first block brings dst to a cache line; every later block then starts on one.
  size_t n = stream && misaligned != 0 ? (64 - misaligned) / size : kBlock;
  for (size_t begin = 0; begin < args.n; begin += n, n = kBlock) {
    if (n > args.n - begin) n = args.n - begin;
    accumulate_block<L>(acc, args, weights, begin, n);
    size_t padded = (n + strip_size<L>() - 1) / strip_size<L>() * strip_size<L>();
    if (!divide<L>(acc, padded, args.divisor, limit)) {
      below &= redo_overflows<T>(acc, args, weights, limit, begin, n);
    }
    char* target = dst + begin * size;
    if (stream && reinterpret_cast<uintptr_t>(target) % 64 == 0) {
      store_any<L>(args.dst_dtype, out, acc, n);
      stream_copy(target, out, n * size);
    } else {
      store_any<L>(args.dst_dtype, target, acc, n);
    }
  }
  if (stream) stream_fence();
  return !below;
}

static bool weighted_sum(const WeightedSumArgs& args) {
  if (args.accumulator == kAccF32) return weighted_sum_lanes<LanesF32>(args, args.weights_f32);
  return weighted_sum_lanes<LanesF64>(args, args.weights_f64);
}
