// SPDX-License-Identifier: MIT
// A prepared weighted sum over many segments, whose sources and destinations are memory or byte ranges of open files.
// run.h carries it out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "../kernels.h"

namespace soup {

// What an address is one of: the memory of whoever carries the plan out, the host or a GPU; or the host's, for a GPU.
constexpr std::int32_t kInMemory = -1;
constexpr std::int32_t kOnHost = -3;

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
  std::size_t first_row = 0;
};

struct Plan {
  std::vector<Segment> segments;
  // The segments as they were given, one row each, numbered in that order: where it ends, in elements from the start of
  // the segment that it has become part of. A segment's rows go on up to the next one's first.
  std::vector<std::uint64_t> row_ends;
  std::vector<Place> sources;
  std::vector<double> weights;  // one a source
  std::vector<float> weights_f32;
};

// Chunks start at multiples of this many elements, so that aligned destinations stay aligned.
constexpr std::uint64_t kGranule = 64;

struct SegmentCost {
  std::uint64_t moved = 0;   // bytes per element, read and written
  std::size_t buffered = 0;  // bytes per element that pass through a buffer
  std::size_t buffers = 0;   // number of those buffers
};

SegmentCost cost_of(const Plan& plan, const Segment& segment);

struct RowRange {
  std::size_t begin, end;
};

// The rows of a segment; where a row of them starts in it; the row that holds an element (rows without elements hold
// none).
RowRange rows_of(const Plan& plan, std::size_t segment);
std::uint64_t row_start(const Plan& plan, RowRange rows, std::size_t row);
std::size_t row_at(const Plan& plan, RowRange rows, std::uint64_t element);

// The descriptors of the files that a plan reads, ascending.
std::vector<int> source_files(const Plan& plan);

// Bytes that a run reads plus those that it writes.
std::uint64_t plan_bytes(const Plan& plan);

// Appends a segment whose sources are the last segment.count of plan.sources, or lets the previous segment grow where
// the new one continues it in every source and in the destination: a checkpoint then is a few long segments. It remains
// a row of its own.
void append_segment(Plan& plan, Segment segment);

// Two rows (the first writes what the second reads or writes) that overlap in memory other than exactly, source on own
// destination; {-1, -1} where there are none.
std::pair<std::int64_t, std::int64_t> find_overlap(const Plan& plan);

// The smallest buffer_bytes that a plan can run with.
std::size_t plan_minimum_buffer(const Plan& plan);

}  // namespace soup
