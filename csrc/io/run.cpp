// SPDX-License-Identifier: MIT
#include "run.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "../errors.h"
#include "nonfinite.h"
#include "positional.h"
#include "source_files.h"

namespace soup {
namespace {

// Bytes moved per chunk in memory: far above the cost of fetching a chunk number, far below what delays a Ctrl-C.
constexpr std::uint64_t kMemoryChunk = 2u << 20;
// Destinations of this size will not be read again from the cache: they are written past it.
constexpr std::uint64_t kStreamBytes = 4u << 20;

// Whether every chunk could hold at least a granule between the ends of blocks.
bool room_for_blocks(const Plan& plan, std::size_t buffer_bytes) {
  std::size_t most = 0;
  for (const Segment& segment : plan.segments) most = std::max(most, cost_of(plan, segment).buffers);
  return buffer_bytes >= plan_minimum_buffer(plan) + most * DirectFiles::kSlack;
}

class Run {
 public:
  Run(const Plan& plan, const KernelTable& kernels, const RunOptions& options)
      : plan_(plan),
        kernels_(kernels),
        buffer_bytes_(options.buffer_bytes),
        wants_direct_(options.direct && room_for_blocks(plan, options.buffer_bytes)),
        layout_(wants_direct_ ? kPastCache : kThroughCache) {
    std::uint64_t chunks = 0;
    for (const Segment& segment : plan.segments) {
      SegmentCost cost = cost_of(plan, segment);
      std::uint64_t elements =
          cost.buffers > 0 ? buffered_chunk(cost) : kMemoryChunk / std::max<std::uint64_t>(cost.moved, 1);
      elements = std::max(elements / kGranule * kGranule, kGranule);
      needs_buffer_ |= cost.buffers > 0;
      bytes_ += cost.moved * segment.n;
      written_in_memory_ += segment.dst.fd < 0 ? segment.n * item_size(segment.dst.dtype) : 0;
      max_sources_ = std::max(max_sources_, segment.count);
      first_chunk_.push_back(chunks);
      chunk_elements_.push_back(elements);
      chunks += (segment.n + elements - 1) / elements;
    }
    chunks_ = chunks;
    int wanted = bytes_ < Crew::kInlineBytes ? 1 : options.threads;
    threads_ = static_cast<int>(std::max<std::uint64_t>(1, std::min<std::uint64_t>(wanted, chunks)));
  }

  Outcome execute(const Tick& tick) {
    bool helpers_only = needs_buffer_ && bytes_ >= Crew::kInlineBytes;
    files_ = std::make_unique<SourceFiles>(helpers_only ? source_files(plan_) : std::vector<int>(), wants_direct_);
    Crew crew(threads_, helpers_only);
    bool finished = crew.run(chunks_, [&] { return std::make_unique<Member>(*this, crew); }, tick);
    std::sort(nonfinite_.begin(), nonfinite_.end());
    nonfinite_.erase(std::unique(nonfinite_.begin(), nonfinite_.end()), nonfinite_.end());
    return {finished, std::move(nonfinite_)};
  }

 private:
  std::uint64_t buffered_chunk(const SegmentCost& cost) const {
    std::size_t slack = cost.buffers * layout_.slack;
    std::size_t room = buffer_bytes_ > slack ? buffer_bytes_ - slack : 0;
    std::uint64_t elements = room / cost.buffered;
    if (elements < kGranule) throw Error(ErrorKind::kInvalid, "the buffer is too small for one chunk of every source");
    return elements;
  }

  class Member : public CrewMember {
   public:
    Member(Run& run, Crew& crew) : run_(run), crew_(crew), pointers_(run.max_sources_), dtypes_(run.max_sources_) {
      if (run.needs_buffer_) buffer_ = std::make_unique<PieceBuffer>(run.buffer_bytes_, run.layout_);
    }
    void process(std::uint64_t chunk) override {
      char* buffer = buffer_ ? buffer_->begin() : nullptr;
      crew_.count(run_.process(chunk, buffer, pointers_, dtypes_, nonfinite_));
    }
    void finish() override { run_.nonfinite_.insert(run_.nonfinite_.end(), nonfinite_.begin(), nonfinite_.end()); }

   private:
    Run& run_;
    Crew& crew_;
    std::unique_ptr<PieceBuffer> buffer_;
    std::vector<const void*> pointers_;
    std::vector<std::uint8_t> dtypes_;
    std::vector<std::size_t> nonfinite_;
  };

  // Returns the bytes moved.
  std::uint64_t process(std::uint64_t chunk, char* buffer, std::vector<const void*>& pointers,
                        std::vector<std::uint8_t>& dtypes, std::vector<std::size_t>& nonfinite) const {
    auto after = std::upper_bound(first_chunk_.begin(), first_chunk_.end(), chunk);
    std::size_t index = static_cast<std::size_t>(after - first_chunk_.begin()) - 1;
    const Segment& segment = plan_.segments[index];
    std::uint64_t begin = (chunk - first_chunk_[index]) * chunk_elements_[index];
    std::uint64_t n = std::min(chunk_elements_[index], segment.n - begin);
    char* room = buffer;
    std::uint64_t moved = 0;
    for (std::size_t k = 0; k < segment.count; ++k) {
      const Place& source = plan_.sources[segment.first_source + k];
      std::size_t size = item_size(source.dtype);
      moved += n * size;
      dtypes[k] = source.dtype;
      pointers[k] = files_->fetch(source, begin * size, n * size, room);
    }
    std::size_t size = item_size(segment.dst.dtype);
    bool to_file = segment.dst.fd >= 0;
    char* dst = to_file ? room : reinterpret_cast<char*>(segment.dst.at) + begin * size;
    if (compute(segment, pointers.data(), dtypes.data(), n, dst)) find_rows(index, begin, n, dst, nonfinite);
    for (std::size_t k = 0; k < segment.count; ++k) {
      const Place& source = plan_.sources[segment.first_source + k];
      files_->check(source, begin * item_size(source.dtype));
    }
    if (to_file) write_at(segment.dst.fd, dst, n * size, segment.dst.at + begin * size);
    return moved + n * size;
  }

  // Appends the rows with a value that is not finite among the n elements of a segment that were just written. A thread
  // meets its rows in ascending order, so the last one found is the only one that it could find again.
  void find_rows(std::size_t index, std::uint64_t begin, std::uint64_t n, const char* dst,
                 std::vector<std::size_t>& nonfinite) const {
    const Segment& segment = plan_.segments[index];
    std::size_t size = item_size(segment.dst.dtype);
    RowRange rows = rows_of(plan_, index);
    std::uint64_t end = begin + n;
    for (std::size_t row = row_at(plan_, rows, begin); row < rows.end; ++row) {
      std::uint64_t from = std::max(begin, row_start(plan_, rows, row));
      std::uint64_t to = std::min(end, plan_.row_ends[row]);
      if (from >= end) break;
      if (!nonfinite.empty() && nonfinite.back() == row) continue;
      if (has_nonfinite(dst + (from - begin) * size, to - from, segment.dst.dtype)) nonfinite.push_back(row);
    }
  }

  // Returns whether the kernel met values that are not finite.
  bool compute(const Segment& segment, const void* const* pointers, const std::uint8_t* dtypes, std::uint64_t n,
               char* dst) const {
    if (segment.dst.dtype == kRaw) {
      std::memmove(dst, pointers[0], n);
      return false;
    }
    WeightedSumArgs args;
    args.sources = pointers;
    args.dtypes = dtypes;
    args.weights_f64 = plan_.weights.data() + segment.first_source;
    args.weights_f32 = plan_.weights_f32.data() + segment.first_source;
    args.count = segment.count;
    args.n = n;
    args.divisor = segment.divisor;
    args.dst = dst;
    args.dst_dtype = segment.dst.dtype;
    args.accumulator = segment.accumulator;
    args.stream = segment.dst.fd < 0 && written_in_memory_ >= kStreamBytes;
    return kernels_.weighted_sum(args);
  }

  const Plan& plan_;
  const KernelTable& kernels_;
  const std::size_t buffer_bytes_;
  const bool wants_direct_;
  const PieceLayout layout_;
  std::vector<std::uint64_t> first_chunk_;
  std::vector<std::uint64_t> chunk_elements_;
  std::uint64_t chunks_ = 0;
  std::uint64_t bytes_ = 0;
  std::uint64_t written_in_memory_ = 0;
  std::size_t max_sources_ = 0;
  bool needs_buffer_ = false;
  int threads_ = 1;

  std::unique_ptr<SourceFiles> files_;
  std::vector<std::size_t> nonfinite_;
};

}  // namespace

Outcome run_plan(const Plan& plan, const KernelTable& kernels, const RunOptions& options, const Tick& tick) {
  if (plan.segments.empty()) return {true, {}};
  return Run(plan, kernels, options).execute(tick);
}

}  // namespace soup
