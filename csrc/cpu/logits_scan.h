// SPDX-License-Identifier: MIT
// The first pass over a block of logits: values, ranks, the two largest, NaN. Included by logits_impl.h.
#pragma once

// Bytes fetched ahead while a block is scanned: one stream has to keep as many lines on their way as kernels_impl.h's
// have together. Measured with 16-bit logits: up to 1.25 times the speed of 512. With more passes over a block to come,
// what is fetched too early is lost from the first-level cache.
constexpr size_t kPrefetchRanks = 2048;
constexpr size_t kPrefetchPlaces = 1024;

template <class T>
constexpr uint8_t type_code() {
  return sizeof(T) == 8 ? kF64 : kF32;
}

// Where the values of one block come from: `raw` are n elements; base, where there is one, has them in the lanes' type
// and zeros up to a whole vector.
template <class T>
struct Block {
  const char* raw;
  const T* base;
  T weight, scale;
  size_t n;
  // The label's place: how many of the block's classes are before it, and whether it is one of them itself. Where it is
  // not, all are before it or none, and all only if there is a whole number of vectors.
  size_t before;
  bool own;
};

template <uint8_t kType>
constexpr size_t size_of() {
  return kType == kF64 ? 8 : kType == kF32 ? 4 : 2;
}

template <class T>
static inline const char* bytes(const T* p) {
  return reinterpret_cast<const char*>(p);
}

// The values from element i on.
template <class L, uint8_t kType, bool kBase>
static inline typename L::V value_at(const Block<typename L::Scalar>& block, const char* raw, size_t i) {
  typename L::V x = L::template load_as<kType>(raw);
  if constexpr (!kBase) return x;
  typename L::V base = L::template load_as<type_code<typename L::Scalar>()>(bytes(block.base + i));
  return L::mul(L::broadcast(block.scale), L::fma(L::broadcast(block.weight), x, base));
}

// Running results over the vectors of a block; two of each, as one would wait for itself.
template <class L>
struct Running {
  typename L::V best[2], second[2];
  typename L::Count ahead[2];
  typename L::Flag nan;
};

template <class L, bool kPlaces>
static inline void take(Running<L>& running, size_t which, typename L::V x) {
  if constexpr (kPlaces) {
    running.second[which] = L::max(running.second[which], L::min(running.best[which], x));
    running.best[which] = L::max(running.best[which], x);
  }
}

// Vectors [from, to) of the block, all of them on one side of the label. kOrEqual: the side before it.
template <class L, uint8_t kType, bool kBase, bool kPlaces, bool kOrEqual>
static inline void scan_vectors(const Block<typename L::Scalar>& block, size_t from, size_t to, typename L::V target,
                                typename L::Scalar* values, Running<L>& running) {
  constexpr size_t w = L::kWidth;
  constexpr size_t size = size_of<kType>();
  size_t i = from * w;
  for (; i + 2 * w <= to * w; i += 2 * w) {
    const char* raw = block.raw + i * size;
    for (size_t line = 0; line < 2 * w * size; line += 64) {
      __builtin_prefetch(raw + (kPlaces ? kPrefetchPlaces : kPrefetchRanks) + line);
    }
    typename L::V a = value_at<L, kType, kBase>(block, raw, i);
    typename L::V b = value_at<L, kType, kBase>(block, raw + w * size, i + w);
    if constexpr (kPlaces) {
      L::store(values + i, a);
      L::store(values + i + w, b);
    }
    running.ahead[0] = L::template count_above<kOrEqual>(running.ahead[0], a, target);
    running.ahead[1] = L::template count_above<kOrEqual>(running.ahead[1], b, target);
    running.nan = L::flag_nan(running.nan, a, b);
    take<L, kPlaces>(running, 0, a);
    take<L, kPlaces>(running, 1, b);
  }
  if (i == to * w) return;
  typename L::V a = value_at<L, kType, kBase>(block, block.raw + i * size, i);
  if constexpr (kPlaces) L::store(values + i, a);
  running.ahead[0] = L::template count_above<kOrEqual>(running.ahead[0], a, target);
  running.nan = L::flag_nan(running.nan, a, a);
  take<L, kPlaces>(running, 0, a);
}

// The vector of n elements, fewer than there are lanes, that ends the block: the others are -inf. No load leaves the
// row.
template <class L, uint8_t kType, bool kBase>
static inline typename L::V last_values(const Block<typename L::Scalar>& block, size_t n) {
  using T = typename L::Scalar;
  constexpr size_t w = L::kWidth;
  constexpr size_t size = size_of<kType>();
  alignas(64) T values[2 * w];
  L::store(values + w, L::broadcast(static_cast<T>(-infinity())));
  if (block.n >= w) {  // a whole vector that ends there, moved down
    L::store(values, value_at<L, kType, kBase>(block, block.raw + (block.n - w) * size, block.n - w));
    return L::template load_as<type_code<T>()>(bytes(values + w - n));
  }
  alignas(64) char padded[w * size] = {};
  __builtin_memcpy(padded, block.raw, n * size);
  L::store(values, value_at<L, kType, kBase>(block, padded, 0));
  for (size_t j = n; j < w; ++j) values[j] = static_cast<T>(-infinity());
  return L::load(values);
}

// The vector that starts at i and holds the label, or the end of the block, or both. Returns how many of its elements
// are ahead of the label because they come before it; the others go to the lanes.
template <class L, uint8_t kType, bool kBase, bool kPlaces>
static inline int64_t scan_mixed(const Block<typename L::Scalar>& block, size_t i, typename L::Scalar target,
                                 typename L::Scalar* values, Running<L>& running) {
  using T = typename L::Scalar;
  constexpr size_t w = L::kWidth;
  typename L::V x = block.n - i < w ? last_values<L, kType, kBase>(block, block.n - i)
                                    : value_at<L, kType, kBase>(block, block.raw + i * size_of<kType>(), i);
  if constexpr (kPlaces) L::store(values + i, x);
  running.ahead[0] = L::template count_above<false>(running.ahead[0], x, L::broadcast(target));
  running.nan = L::flag_nan(running.nan, x, x);
  take<L, kPlaces>(running, 0, x);
  if (!block.own || block.before < i) return 0;
  alignas(64) T own[w];
  L::store(own, x);
  int64_t ahead = 0;
  for (size_t j = 0; j < block.before - i; ++j) ahead += own[j] == target;
  return ahead;
}

// The two largest of what the lanes have found, as one multiset.
template <class L>
static void largest_two(const Running<L>& running, typename L::Scalar& best, typename L::Scalar& second) {
  using T = typename L::Scalar;
  constexpr size_t w = L::kWidth;
  alignas(64) T bests[w], seconds[w];
  typename L::V low = L::min(running.best[0], running.best[1]);
  L::store(bests, L::max(running.best[0], running.best[1]));
  L::store(seconds, L::max(low, L::max(running.second[0], running.second[1])));
  for (size_t half = w / 2; half > 0; half /= 2) {
    for (size_t j = 0; j < half; ++j) {
      T one = bests[j], other = bests[j + half];
      T smaller = one < other ? one : other;
      T runner_up = seconds[j] > seconds[j + half] ? seconds[j] : seconds[j + half];
      bests[j] = one > other ? one : other;
      seconds[j] = smaller > runner_up ? smaller : runner_up;
    }
  }
  best = bests[0];
  second = seconds[0];
}

struct BlockResult {
  double best, second;
  int64_t ahead;
  bool nan;
};

// The first pass over a block. kPlaces: best and second too, and the values to `values`.
template <class L, uint8_t kType, bool kBase, bool kPlaces>
static BlockResult scan(const Block<typename L::Scalar>& block, double row_target, typename L::Scalar* values) {
  using T = typename L::Scalar;
  constexpr size_t w = L::kWidth;
  T target = static_cast<T>(row_target);
  typename L::V limit = L::broadcast(target);
  typename L::V least = L::broadcast(static_cast<T>(-infinity()));
  Running<L> running = {{least, least}, {least, least}, {L::no_count(), L::no_count()}, L::no_flag()};
  size_t whole = block.n / w;
  size_t at = block.before / w;
  int64_t ahead = 0;
  scan_vectors<L, kType, kBase, kPlaces, true>(block, 0, at, limit, values, running);
  if (block.own) {
    ahead += scan_mixed<L, kType, kBase, kPlaces>(block, at * w, target, values, running);
    ++at;
  }
  if (at < whole) {
    scan_vectors<L, kType, kBase, kPlaces, false>(block, at, whole, limit, values, running);
    at = whole;
  }
  if (at * w < block.n) ahead += scan_mixed<L, kType, kBase, kPlaces>(block, at * w, target, values, running);
  BlockResult result = {0.0, 0.0, ahead, L::flagged(running.nan)};
  result.ahead += L::total(running.ahead[0]) + L::total(running.ahead[1]);
  if constexpr (kPlaces) {
    T best, second;
    largest_two<L>(running, best, second);
    result.best = best;
    result.second = second;
  }
  return result;
}

template <class L, uint8_t kType>
static BlockResult scan_type(bool places, const Block<typename L::Scalar>& block, double target,
                             typename L::Scalar* values) {
  if (block.base != nullptr) {
    return places ? scan<L, kType, true, true>(block, target, values)
                  : scan<L, kType, true, false>(block, target, values);
  }
  return places ? scan<L, kType, false, true>(block, target, values)
                : scan<L, kType, false, false>(block, target, values);
}

template <class L>
static BlockResult scan_any(uint8_t type, bool places, const Block<typename L::Scalar>& block, double target,
                            typename L::Scalar* values) {
  switch (type) {
    case kF64:
      if constexpr (sizeof(typename L::Scalar) == 8) return scan_type<L, kF64>(places, block, target, values);
      return {};  // the caller chooses the lanes: never here
    case kF16:
      return scan_type<L, kF16>(places, block, target, values);
    case kBF16:
      return scan_type<L, kBF16>(places, block, target, values);
    default:
      return scan_type<L, kF32>(places, block, target, values);
  }
}
