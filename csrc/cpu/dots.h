// SPDX-License-Identifier: MIT
// Inner products on several threads.
#pragma once

#include <functional>

#include "../dot_plan.h"

namespace soup {

// out[k * segments + s]: that of segment s with source k (kernels.h has the contract). keep_going is called on the
// calling thread about every 50 ms; false stops the work. Returns whether all was done. Neither bits nor outcome depend
// on the kernels or the number of threads, none of which outlives the call. Caller must keep memory alive and unshared
// meanwhile.
bool run_dots(const DotPlan& plan, const KernelTable& kernels, int threads, const std::function<bool()>& keep_going,
              double* out);

}  // namespace soup
