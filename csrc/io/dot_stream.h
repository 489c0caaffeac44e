// SPDX-License-Identifier: MIT
// Inner products of tensors that are streamed: in memory or byte ranges of open files, of any size, in bounded memory.
// Each source is read once. The contract is in kernels.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../kernels.h"
#include "plan.h"
#include "run.h"

namespace soup {

struct DotStream {
  struct Segment {
    std::uint64_t n;  // elements
    std::uint64_t first_tile;
    Place gradient;  // in memory; not used for pairs
  };
  std::vector<Segment> segments;
  std::size_t count = 0;       // sources
  std::vector<Place> sources;  // [segments, count]
  bool pairs = false;          // each source with itself and those after it, and no gradient
  std::uint64_t tiles = 0;     // of all segments
  std::uint64_t bytes = 0;     // that are read, gradients included

  // A segment, to be followed by its `count` sources.
  void append(std::uint64_t n, Place gradient);
  void append_source(Place source);

  // Products of a segment: one a source, or one a pair: (0, 0), (0, 1), ..., (1, 1), (1, 2), ...
  std::size_t width() const { return pairs ? count * (count + 1) / 2 : count; }
};

// The descriptors of the files that are read, ascending.
std::vector<int> source_files(const DotStream& stream);

// Bytes for the sums of tiles that wait for their turn. Threads wait for one another whenever they are full, so there
// should be room for many tiles a thread.
constexpr std::size_t kWaitingSums = 4u << 20;

// The smallest buffer of a thread; and what is needed beside the buffers of all threads.
std::size_t minimum_buffer(const DotStream& stream);
std::size_t memory_for_sums(const DotStream& stream);

// out[i * segments + s]: product i of segment s. Returns whether all was done; as run_plan does (run.h) otherwise.
// Neither bits nor outcome depend on kernels, options or what may wait.
bool stream_dots(const DotStream& stream, const KernelTable& kernels, const RunOptions& options, const Tick& tick,
                 double* out, std::size_t waiting = kWaitingSums);

}  // namespace soup
