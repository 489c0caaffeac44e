// SPDX-License-Identifier: MIT
// A row of logits put together from its blocks, and its scores (the contract is in kernels.h). Host and device, every
// ISA unit.
#pragma once

#include "exp_log.h"
#include "kernels.h"

namespace soup {

// Classes per pass: on a CPU the values of a block, and those of the base, stay in the first-level cache between the
// passes.
constexpr size_t kLogitBlock = 4096;
constexpr size_t kStrip = 64;  // values summed together
constexpr size_t kSums = 16;   // sums side by side

SOUP_HD double infinity() { return __builtin_inf(); }
SOUP_HD double not_a_number() { return bit_cast<double>(kNanF64); }
SOUP_HD bool is_infinite(double x) { return x - x != 0.0; }  // of what is no NaN

// What is known of a row after some of its blocks. Values are exact in f64.
struct RowState {
  double target;
  double best, second;
  double relative;  // sum over all but the best of exp(value - second); 0 where second is -inf
  int64_t best_at;
  int64_t ahead;
  bool nan;
};

// The next block together with what came before it.
SOUP_HD RowState joined(const RowState& row, const RowState& next, bool likelihood) {
  bool stays = row.best >= next.best;
  RowState both = next;
  both.best = stays ? row.best : next.best;
  both.best_at = stays ? row.best_at : next.best_at;
  double low = stays ? next.best : row.best;
  double high = row.second > next.second ? row.second : next.second;
  both.second = low > high ? low : high;
  both.relative = 0.0;
  if (likelihood && !is_infinite(both.second)) {
    both.relative = row.relative * exp_of(row.second - both.second) +
                    next.relative * exp_of(next.second - both.second) + exp_of(low - both.second);
  }
  return both;
}

SOUP_HD void write_scores(const LogitArgs& args, size_t at, int64_t rank, int64_t prediction, double margin,
                          double confidence, double nll) {
  args.rank[at] = args.most_rank != 0 && rank > args.most_rank ? args.most_rank : rank;
  if (args.prediction != nullptr) args.prediction[at] = prediction;
  if (args.margin != nullptr) args.margin[at] = margin;
  if (args.confidence != nullptr) args.confidence[at] = confidence;
  if (args.nll != nullptr) args.nll[at] = nll;
}

SOUP_HD void write_ignored(const LogitArgs& args, size_t at) {
  write_scores(args, at, -2, -1, not_a_number(), not_a_number(), not_a_number());
}

// The scores of a whole row. places: more than the rank is wanted; likelihood: confidence or nll.
SOUP_HD void write_row(const LogitArgs& args, const RowState& state, size_t at, bool places, bool likelihood) {
  double nan = not_a_number();
  if (state.nan) return write_scores(args, at, -1, -1, nan, nan, nan);
  if (!places) return write_scores(args, at, state.ahead, -1, nan, nan, nan);
  // + 0.0: no -0, whichever zero a maximum was.
  double margin = state.target - (state.ahead == 0 ? state.second : state.best) + 0.0;
  if (margin != margin) margin = nan;
  if (!likelihood || is_infinite(state.best)) {
    return write_scores(args, at, state.ahead, state.best_at, margin, nan, nan);
  }
  double rest = state.relative * exp_of(state.second - state.best);
  double nll = (state.best - state.target) + log1p_of(rest);
  write_scores(args, at, state.ahead, state.best_at, margin, 1.0 / (1.0 + rest), nll);
}

}  // namespace soup
