// SPDX-License-Identifier: MIT
// Ranks and likelihoods of rows of logits (the contract is in kernels.h), written once over lanes as kernels_impl.h is,
// and included after it.
#pragma once

#include "logits_scan.h"

// Candidates that meet one block of the base while it is in the cache.
constexpr size_t kCandidates = 32;

// The first place of `value` among n values; n where there is none.
template <class L>
static size_t find(const typename L::Scalar* values, size_t n, double wide) {
  auto value = static_cast<typename L::Scalar>(wide);
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

// Sum over n values, a multiple of the strip, of exp(value - reference), 1 for those above the reference; in the order
// of the contract.
template <class L, class Wide>
static double sum_exponentials(const typename L::Scalar* values, size_t n, typename L::Scalar reference,
                               Upcoming upcoming) {
  using T = typename L::Scalar;
  constexpr size_t w = L::kWidth;
  constexpr size_t wide = Wide::kWidth;
  static_assert(kSums % w == 0 && kSums % wide == 0, "lanes make up the sums");
  typename L::V shift = L::broadcast(reference);
  typename L::V zero = L::broadcast(T(0));
  typename Wide::V sums[kSums / wide];
  for (size_t k = 0; k < kSums / wide; ++k) sums[k] = Wide::broadcast(0.0);
  alignas(64) T strip[kSums];
  for (size_t i = 0; i < n; i += kStrip) {
    const char* ahead = upcoming.at + i * upcoming.size;
    for (size_t line = 0; line < kStrip * upcoming.size; line += 64) __builtin_prefetch(ahead + line, 0, 2);
    for (size_t j = 0; j < kSums; j += w) {
      typename L::V e[kStrip / kSums];
      for (size_t q = 0; q < kStrip / kSums; ++q) {
        e[q] = exp_lanes<L>(L::min(L::sub(L::load(values + i + q * kSums + j), shift), zero));
      }
      L::store(strip + j, L::add(L::add(e[0], e[2]), L::add(e[1], e[3])));
    }
    for (size_t k = 0; k < kSums / wide; ++k) {
      sums[k] = Wide::add(sums[k], Wide::template load_as<type_code<T>()>(bytes(strip + k * wide)));
    }
  }
  alignas(64) double total[kSums];
  for (size_t k = 0; k < kSums / wide; ++k) Wide::store(total + k * wide, sums[k]);
  for (size_t half = kSums / 2; half > 0; half /= 2) {
    for (size_t k = 0; k < half; ++k) total[k] += total[k + half];
  }
  return total[0];
}

// What the other values of a block weigh beside its second: the sum of the contract, found without looking for the
// best, which counts as 1 in it.
template <class L, class Wide>
static double weigh(const BlockResult& found, typename L::Scalar* values, size_t n, Upcoming upcoming) {
  using T = typename L::Scalar;
  if (is_infinite(found.best) || is_infinite(found.second)) return 0.0;
  size_t padded = (n + kStrip - 1) / kStrip * kStrip;
  for (size_t i = n; i < padded; ++i) values[i] = static_cast<T>(-infinity());
  return sum_exponentials<L, Wide>(values, padded, static_cast<T>(found.second), upcoming) - 1.0;
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

  // Candidates are innermost: the row of the base stays in the cache, and several streams of memory are faster than
  // one.
  void score(size_t first_row, size_t end_row) {
    for (size_t n = first_row; n < end_row; ++n) {
      for (size_t m = 0; m < args_.candidates; m += kCandidates) {
        score_row(m, m + kCandidates < args_.candidates ? m + kCandidates : args_.candidates, n);
      }
    }
  }

 private:
  // One row of some candidates, kCandidates at most, block by block.
  void score_row(size_t first, size_t end, size_t n) {
    int64_t label = args_.labels[n];
    if (args_.ignoring && label == args_.ignore_label) {
      for (size_t m = first; m < end; ++m) write_ignored(args_, m * args_.rows + n);
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
    for (size_t m = first; m < end; ++m) {
      write_row(args_, states[m - first], m * args_.rows + n, places_, likelihood_);
    }
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
    RowState next = {state.target, found.best, found.second, 0.0, 0, state.ahead, false};
    // With none ahead in its own block the label is the best there.
    size_t at = block.before;
    if (!block.own || found.ahead != 0) at = args_.prediction == nullptr ? 0 : find<L>(values_, count, found.best);
    next.best_at = static_cast<int64_t>(begin + at);
    if (likelihood_) next.relative = weigh<L, Wide>(found, values_, count, {next_raw, size_});
    state = begin == 0 ? next : joined(state, next, likelihood_);
  }

  // The label's value: the same operations on one element.
  double target(size_t m, size_t n, size_t own) const {
    T x = element_any<T>(args_.dtype, place(m, n, own), 0);
    if (args_.base == nullptr) return x;
    const char* row = static_cast<const char*>(args_.base) + n * args_.base_row_stride * item_size(args_.base_dtype);
    T base = element_any<T>(args_.base_dtype, row, own);
    return static_cast<T>(args_.scale) * fused_multiply_add(static_cast<T>(args_.weight), x, base);
  }

  const LogitArgs& args_;
  const bool places_;
  const bool likelihood_;
  const size_t size_;
  alignas(64) T values_[kLogitBlock];
  alignas(64) T base_[kLogitBlock];
};

// Wide: lanes of f64, for the sums.
template <class L, class Wide>
static void score_rows(const LogitArgs& args, size_t first_row, size_t end_row) {
  RowScorer<L, Wide>(args).score(first_row, end_row);
}
