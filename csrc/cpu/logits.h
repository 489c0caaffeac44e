// SPDX-License-Identifier: MIT
// Rows of logits scored on several threads, and what the rows come to.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "../kernels.h"

namespace soup {

// Called on the calling thread about every 50 ms; false stops the work.
using KeepGoing = std::function<bool()>;

// Fills the outputs of args (see kernels.h). f64 logits are done by the plain code whatever the kernels. Returns
// whether all was done. Neither bits nor outcome depend on the kernels or the number of threads, none of which outlives
// the call. Caller must keep memory alive and unshared meanwhile.
bool score_logits(const LogitArgs& args, const KernelTable& kernels, int threads, const KeepGoing& keep_going);

// Sums over the rows that are not ignored, for each candidate: how many ranks are below each k ([k, candidates]), how
// many rows have a NaN, and the likelihoods in the order that kernels.h states, 0 where args.nll is null.
void total_logits(const LogitArgs& args, const std::vector<std::int64_t>& k, std::int64_t* top, std::int64_t* nan_rows,
                  double* nll);

}  // namespace soup
