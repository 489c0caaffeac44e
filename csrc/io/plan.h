// SPDX-License-Identifier: MIT
// A prepared weighted sum over many segments, whose sources and destinations are memory or byte ranges of open files,
// and the one loop that carries it out: chunk by chunk, on several threads, in bounded memory.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "../kernels.h"

namespace soup {

// Where a run of elements lives: an address (fd < 0) or an offset in an open file.
struct Place {
  std::uint64_t at;
  std::int32_t fd;
  std::uint8_t dtype;
};

struct Segment {
  std::uint64_t n;  // elements
  std::size_t first_source;
  std::size_t count;  // sources; kRaw segments copy their single source
  Place dst;
  double divisor;
  std::uint8_t accumulator;
};

struct Plan {
  std::vector<Segment> segments;
  std::vector<Place> sources;
  std::vector<double> weights;  // one a source
  std::vector<float> weights_f32;
};

struct RunOptions {
  int threads = 1;
  std::size_t buffer_bytes = 0;  // per thread, for what is read from and written to files
};

// Called on the calling thread about every 50 ms with the bytes moved so far; false stops the run.
using Tick = std::function<bool(std::uint64_t)>;

// Bytes that a run reads plus those that it writes.
std::uint64_t plan_bytes(const Plan& plan);

// Appends a segment whose sources are the last segment.count of plan.sources, or lets the previous segment grow where
// the new one continues it in every source and in the destination: a checkpoint then is a few long segments.
void append_segment(Plan& plan, Segment segment);

// Two segments (the first writes what the second reads or writes) that overlap in memory other than exactly, source on
// own destination; {-1, -1} where there are none. Indices count the segments after append_segment's merging.
std::pair<std::int64_t, std::int64_t> find_overlap(const Plan& plan);

// The smallest buffer_bytes that a plan can run with.
std::size_t plan_minimum_buffer(const Plan& plan);

// Carries the plan out and returns true, or false if tick stopped it. Throws Error for a failed read or write; the
// other threads then end after their current chunk. Caller must keep memory, files and plan alive and unshared
// meanwhile. The bits do not depend on threads or buffer_bytes.
bool run_plan(const Plan& plan, const KernelTable& kernels, const RunOptions& options, const Tick& tick);

}  // namespace soup
