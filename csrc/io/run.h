// SPDX-License-Identifier: MIT
// The one loop that carries a plan out: chunk by chunk, on several threads, in bounded memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../kernels.h"
#include "crew.h"
#include "plan.h"

namespace soup {

struct RunOptions {
  int threads = 1;
  std::size_t buffer_bytes = 0;  // per thread, for what is read from and written to files
  // What is not in the page cache is read past it, where the files and the buffers allow that: for files that nobody
  // reads again soon. It takes long chunks and more threads than processors to keep a disk busy.
  bool direct = false;
};

struct Outcome {
  bool finished = true;  // false if tick stopped the run
  // The rows with a NaN or an infinity among their results (e4m3 has no infinity: with a NaN), ascending. Bytes that
  // are only copied are not looked at.
  std::vector<std::size_t> nonfinite;
};

// Carries the plan out. Throws Error for a failed read or write; the other threads then end after their current chunk.
// Caller must keep memory, files and plan alive and unshared meanwhile. Neither the bits nor the outcome depend on
// the options.
Outcome run_plan(const Plan& plan, const KernelTable& kernels, const RunOptions& options, const Tick& tick);

}  // namespace soup
