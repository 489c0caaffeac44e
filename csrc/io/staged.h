// SPDX-License-Identifier: MIT
// Carries a plan out on a GPU. What is in files and in host memory passes through a ring of pinned slots to the device,
// where it is summed as it arrives; results that do not stay there pass back the same way. Reading, copying and summing
// overlap, within a memory that does not depend on the plan.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../device.h"
#include "plan.h"
#include "run.h"

namespace soup {

struct StagedOptions {
  int device = 0;
  device::Stream after = 0;  // what is queued there already is done before the run touches the device's memory
  int threads = 1;           // that read and write
  std::size_t memory = 0;    // bytes of all slots on the host; the device has as many
  bool direct = false;       // as in RunOptions: read past the page cache what it does not hold
  bool timeline = false;     // keep the times of every chunk
};

// When each step of a chunk began and ended, in seconds from the start of the run: reading and writing by the host's
// clock, the others by the device's.
struct ChunkTimes {
  std::uint64_t bytes = 0;  // that went to the device
  int thread = 0;
  double read[2] = {0, 0}, copy[2] = {0, 0}, kernel[2] = {0, 0}, back[2] = {0, 0}, write[2] = {0, 0};
};

struct StagedOutcome : Outcome {
  int threads = 0;
  std::size_t memory = 0;  // bytes of all slots on the host
  std::vector<ChunkTimes> timeline;
};

// The least memory that a plan can be staged with.
std::size_t staged_memory(const Plan& plan);

// As run_plan, with the same bits and the same rows reported. Places with kInMemory are addresses on the device, those
// with kOnHost on the host. Returns, and throws, only when nothing of it runs on the device any more.
StagedOutcome run_staged(const Plan& plan, const StagedOptions& options, const Tick& tick);

}  // namespace soup
