// SPDX-License-Identifier: MIT
// Ranks and likelihoods of rows of logits (the contract is in kernels.h), written once over lanes as kernels_impl.h is,
// and included after it.
#pragma once

// Classes per pass: the values of a block, and those of the base, stay in the first-level cache between the passes.
constexpr size_t kLogitBlock = 4096;
constexpr size_t kStrip = 64;
constexpr size_t kSums = 16;
// Candidates that meet one block of the base while it is in the cache.
constexpr size_t kCandidates = 32;

template <class T>
constexpr uint8_t type_code() {
  return sizeof(T) == 8 ? kF64 : kF32;
}

static inline double infinity() { return __builtin_inf(); }
static inline double not_a_number() { return bit_cast<double>(kNanF64); }
static inline bool is_infinite(double x) { return x - x != 0.0; }  // of what is no NaN

// What is known of a row after some of its blocks. Values are exact in f64.
struct RowState {
  double target;
  double best, second;
  double relative;  // sum over all but the best of exp(value - second); 0 where second is -inf
  int64_t best_at;
  int64_t ahead;
  bool nan;
};

// Where the values of one block come from: `raw` are n elements; base, where there is one, has them in the lanes' type
// and zeros up to a whole vector.
template <class T>
struct Block {
  const char* raw;
  const T* base;
  T weight, scale;
  size_t n;
  // The label's place: how many of the block's classes are before it, and whether it is one of them itself.
  size_t before;
  bool own;
};

template <class L, uint8_t kType, bool kBase>
static inline typename L::V value_at(const Block<typename L::Scalar>& block, const char* raw, size_t i) {
  typename L::V x = L::template load_as<kType>(raw);
  if constexpr (!kBase) return x;
  return L::mul(L::broadcast(block.scale), L::fma(L::broadcast(block.weight), x, L::load(block.base + i)));
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
  constexpr size_t size = kType == kF64 ? 8 : kType == kF32 ? 4 : 2;
  size_t i = from * w;
  for (; i + 2 * w <= to * w; i += 2 * w) {
    const char* raw = block.raw + i * size;
    prefetch_strip(raw, 2 * w * size);
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

// The vector that starts at i and holds the label, or the end of the block, or both. Returns how many of its elements
// are ahead.
template <class L, uint8_t kType, bool kBase, bool kPlaces>
static inline int64_t scan_mixed(const Block<typename L::Scalar>& block, size_t i, typename L::Scalar target,
                                 typename L::Scalar* values, Running<L>& running) {
  using T = typename L::Scalar;
  constexpr size_t w = L::kWidth;
  constexpr size_t size = kType == kF64 ? 8 : kType == kF32 ? 4 : 2;
  alignas(64) char padded[w * 8];
  const char* raw = block.raw + i * size;
  size_t n = block.n - i;
  if (n < w) {  // no load leaves the row
    __builtin_memset(padded, 0, sizeof(padded));
    __builtin_memcpy(padded, raw, n * size);
    raw = padded;
  }
  alignas(64) T own[w];
  L::store(own, value_at<L, kType, kBase>(block, raw, i));
  int64_t ahead = 0;
  for (size_t j = 0; j < w; ++j) {
    if (j >= n) own[j] = static_cast<T>(-infinity());
    if (i + j < block.before) {
      ahead += own[j] >= target;
    } else {
      ahead += own[j] > target;  // the label itself and what is past the end are not
    }
  }
  typename L::V x = L::load(own);
  if constexpr (kPlaces) L::store(values + i, x);
  running.nan = L::flag_nan(running.nan, x, x);
  take<L, kPlaces>(running, 0, x);
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
  if (block.own || block.before % w != 0) {
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

// The first place of `value` among n values; n where there is none.
template <class L>
static size_t find(const typename L::Scalar* values, size_t n, typename L::Scalar value) {
  typename L::V wanted = L::broadcast(value);
  size_t i = 0;
  while (i + L::kWidth <= n && !L::any_equal(L::load(values + i), wanted)) i += L::kWidth;
  while (i < n && values[i] != value) ++i;
  return i;
}

// Bytes that are needed after the present block: fetched into the second-level cache while there is only arithmetic.
struct Upcoming {
  const char* at;
  size_t size;  // of an element
};

// Sum over n values, a multiple of the strip, of exp(value - reference), in the order of the contract.
template <class L, class Wide>
static double sum_exponentials(const typename L::Scalar* values, size_t n, typename L::Scalar reference,
                               Upcoming upcoming) {
  using T = typename L::Scalar;
  constexpr size_t w = L::kWidth;
  constexpr size_t wide = Wide::kWidth;
  static_assert(kSums % w == 0 && kSums % wide == 0, "lanes make up the sums");
  typename L::V shift = L::broadcast(reference);
  typename Wide::V sums[kSums / wide];
  for (size_t k = 0; k < kSums / wide; ++k) sums[k] = Wide::broadcast(0.0);
  alignas(64) T strip[kSums];
  for (size_t i = 0; i < n; i += kStrip) {
    const char* ahead = upcoming.at + i * upcoming.size;
    for (size_t line = 0; line < kStrip * upcoming.size; line += 64) __builtin_prefetch(ahead + line, 0, 2);
    for (size_t j = 0; j < kSums; j += w) {
      typename L::V e[kStrip / kSums];
      for (size_t q = 0; q < kStrip / kSums; ++q) {
        e[q] = exp_lanes<L>(L::sub(L::load(values + i + q * kSums + j), shift));
      }
      L::store(strip + j, L::add(L::add(e[0], e[2]), L::add(e[1], e[3])));
    }
    for (size_t k = 0; k < kSums / wide; ++k) {
      const char* part = reinterpret_cast<const char*>(strip + k * wide);
      sums[k] = Wide::add(sums[k], Wide::template load_as<type_code<T>()>(part));
    }
  }
  alignas(64) double total[kSums];
  for (size_t k = 0; k < kSums / wide; ++k) Wide::store(total + k * wide, sums[k]);
  for (size_t half = kSums / 2; half > 0; half /= 2) {
    for (size_t k = 0; k < half; ++k) total[k] += total[k + half];
  }
  return total[0];
}

// The second pass over a block: where its best is, and what the others weigh beside its second.
template <class L, class Wide>
static RowState weigh(const BlockResult& found, typename L::Scalar* values, size_t n, size_t label_at, bool own,
                      bool likelihood, Upcoming upcoming) {
  using T = typename L::Scalar;
  RowState state = {0.0, found.best, found.second, 0.0, 0, found.ahead, false};
  // With none ahead in its own block the label is the best there.
  size_t at = own && found.ahead == 0 ? label_at : find<L>(values, n, static_cast<T>(found.best));
  state.best_at = static_cast<int64_t>(at);
  if (!likelihood || is_infinite(found.best) || is_infinite(found.second)) return state;
  T least = static_cast<T>(-infinity());
  values[at] = least;
  size_t padded = (n + kStrip - 1) / kStrip * kStrip;
  for (size_t i = n; i < padded; ++i) values[i] = least;
  state.relative = sum_exponentials<L, Wide>(values, padded, static_cast<T>(found.second), upcoming);
  return state;
}

// Joins the next block to what came before it.
static void join(RowState& row, const RowState& next, bool likelihood) {
  bool stays = row.best >= next.best;
  double low = stays ? next.best : row.best;
  double high = row.second > next.second ? row.second : next.second;
  double second = low > high ? low : high;
  if (likelihood && !is_infinite(second)) {
    row.relative = row.relative * exp_of(row.second - second) + next.relative * exp_of(next.second - second) +
                   exp_of(low - second);
  }
  row.second = second;
  row.best = stays ? row.best : next.best;
  row.best_at = stays ? row.best_at : next.best_at;
}

template <class L, class Wide>
class RowScorer {
  using T = typename L::Scalar;

 public:
  explicit RowScorer(const LogitArgs& args)
      : args_(args),
        places_(args.prediction != nullptr || args.margin != nullptr || args.confidence != nullptr ||
                args.nll != nullptr),
        likelihood_(args.confidence != nullptr || args.nll != nullptr),
        size_(item_size(args.dtype)) {}

  void score(const LogitRange& range) {
    if (args_.base == nullptr) {
      for (size_t m = range.first_candidate; m < range.end_candidate; ++m) {
        for (size_t n = range.first_row; n < range.end_row; ++n) score_row(m, m + 1, n);
      }
      return;
    }
    for (size_t n = range.first_row; n < range.end_row; ++n) {
      for (size_t m = range.first_candidate; m < range.end_candidate; m += kCandidates) {
        score_row(m, m + kCandidates < range.end_candidate ? m + kCandidates : range.end_candidate, n);
      }
    }
  }

 private:
  // One row of some candidates, kCandidates at most, block by block.
  void score_row(size_t first, size_t end, size_t n) {
    int64_t label = args_.labels[n];
    if (args_.ignoring && label == args_.ignore_label) {
      for (size_t m = first; m < end; ++m)
        write(m * args_.rows + n, -2, -1, not_a_number(), not_a_number(), not_a_number());
      return;
    }
    RowState states[kCandidates];
    size_t own = static_cast<size_t>(label);
    for (size_t begin = 0; begin < args_.classes; begin += kLogitBlock) {
      size_t count = args_.classes - begin < kLogitBlock ? args_.classes - begin : kLogitBlock;
      if (args_.base != nullptr) widen_base(n, begin, count);
      for (size_t m = first; m < end; ++m) {
        bool more = begin + count < args_.classes;
        const char* next =
            m + 1 < end ? place(m + 1, n, begin) : place(first, more ? n : n + 1, more ? begin + count : 0);
        score_block(states[m - first], m, n, own, begin, count, next);
      }
    }
    for (size_t m = first; m < end; ++m) finish(states[m - first], m * args_.rows + n);
  }

  const char* place(size_t m, size_t n, size_t c) const {
    return static_cast<const char*>(args_.logits) + (m * args_.candidate_stride + n * args_.row_stride + c) * size_;
  }

  void widen_base(size_t n, size_t begin, size_t count) {
    const char* row =
        static_cast<const char*>(args_.base) + (n * args_.base_row_stride + begin) * item_size(args_.base_dtype);
    T one = 1;
    const char* source = row;
    accumulate_any<L>(args_.base_dtype, base_, &source, &one, 1, count, true);
  }

  void score_block(RowState& state, size_t m, size_t n, size_t own, size_t begin, size_t count, const char* next_raw) {
    Block<T> block = {place(m, n, begin),
                      args_.base != nullptr ? base_ : nullptr,
                      static_cast<T>(args_.weight),
                      static_cast<T>(args_.scale),
                      count,
                      0,
                      own >= begin && own - begin < count};
    block.before = own <= begin ? 0 : (own - begin < count ? own - begin : count);
    if (begin == 0) state = {target(m, n, own), 0.0, 0.0, 0.0, 0, 0, false};
    if (state.nan) return;
    BlockResult found = scan_any<L>(args_.dtype, places_, block, state.target, values_);
    state.nan = found.nan;
    state.ahead += found.ahead;
    if (!places_ || found.nan) return;
    RowState next = weigh<L, Wide>(found, values_, count, block.before, block.own, likelihood_, {next_raw, size_});
    next.best_at += static_cast<int64_t>(begin);
    if (begin == 0) {
      state.best = next.best;
      state.second = next.second;
      state.relative = next.relative;
      state.best_at = next.best_at;
    } else {
      join(state, next, likelihood_);
    }
  }

  // The label's value: the same operations on one element.
  double target(size_t m, size_t n, size_t own) const {
    T x = element_any<T>(args_.dtype, place(m, n, own), 0);
    if (args_.base == nullptr) return x;
    const char* row = static_cast<const char*>(args_.base) + n * args_.base_row_stride * item_size(args_.base_dtype);
    T base = element_any<T>(args_.base_dtype, row, own);
    return static_cast<T>(args_.scale) * fused_multiply_add(static_cast<T>(args_.weight), x, base);
  }

  void finish(const RowState& state, size_t at) const {
    double nan = not_a_number();
    if (state.nan) return write(at, -1, -1, nan, nan, nan);
    if (!places_) return write(at, state.ahead, -1, nan, nan, nan);
    // + 0.0: no -0, whichever zero a maximum was.
    double margin = state.target - (state.ahead == 0 ? state.second : state.best) + 0.0;
    if (margin != margin) margin = nan;
    if (!likelihood_ || is_infinite(state.best)) return write(at, state.ahead, state.best_at, margin, nan, nan);
    double rest = state.relative * exp_of(state.second - state.best);
    double nll = (state.best - state.target) + log1p_of(rest);
    write(at, state.ahead, state.best_at, margin, 1.0 / (1.0 + rest), nll);
  }

  void write(size_t at, int64_t rank, int64_t prediction, double margin, double confidence, double nll) const {
    args_.rank[at] = rank;
    if (args_.prediction != nullptr) args_.prediction[at] = prediction;
    if (args_.margin != nullptr) args_.margin[at] = margin;
    if (args_.confidence != nullptr) args_.confidence[at] = confidence;
    if (args_.nll != nullptr) args_.nll[at] = nll;
  }

  const LogitArgs& args_;
  const bool places_;
  const bool likelihood_;
  const size_t size_;
  alignas(64) T values_[kLogitBlock];
  alignas(64) T base_[kLogitBlock];
};

// Wide lanes are those of the sums; where they are the widest a value needs, both are of f64.
template <class L, class Wide>
static void score_rows(const LogitArgs& args, const LogitRange& range) {
  RowScorer<L, Wide>(args).score(range);
}
