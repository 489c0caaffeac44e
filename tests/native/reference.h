// SPDX-License-Identifier: MIT
// The contract of weighted_sum (csrc/kernels.h) as a plain loop over elements, in terms of csrc/scalar.h.
#pragma once

#include <vector>

#include "../../csrc/kernels.h"

struct Result {
  std::vector<unsigned char> bytes;
  bool nonfinite;          // what weighted_sum returns
  bool visibly_nonfinite;  // whether the bytes hold a NaN or an infinity
};

Result reference_sum(const soup::WeightedSumArgs& args);
