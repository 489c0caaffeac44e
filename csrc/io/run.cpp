// SPDX-License-Identifier: MIT
#include "run.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "../errors.h"
#include "../float_environment.h"
#include "direct.h"
#include "mapped.h"
#include "nonfinite.h"
#include "positional.h"

namespace soup {
namespace {

// Bytes moved per chunk in memory: far above the cost of fetching a chunk number, far below what delays a Ctrl-C.
constexpr std::uint64_t kMemoryChunk = 2u << 20;
// Below this a run stays on the calling thread: starting a thread costs more.
constexpr std::uint64_t kInlineBytes = 1u << 20;
// Destinations of this size will not be read again from the cache: they are written past it.
constexpr std::uint64_t kStreamBytes = 4u << 20;
constexpr auto kTickInterval = std::chrono::milliseconds(50);

std::size_t align_up(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }

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
        alignment_(wants_direct_ ? DirectFiles::kBlock : 64) {
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
    int wanted = bytes_ < kInlineBytes ? 1 : options.threads;
    threads_ = static_cast<int>(std::max<std::uint64_t>(1, std::min<std::uint64_t>(wanted, chunks)));
  }

  Outcome execute(const Tick& tick) {
    bool helpers_only = needs_buffer_ && bytes_ >= kInlineBytes;  // a blocked read must not block Ctrl-C
    if (helpers_only) mapped_ = std::make_unique<MappedFiles>(plan_, !wants_direct_);
    if (helpers_only && wants_direct_) direct_ = std::make_unique<DirectFiles>(plan_);
    std::vector<std::thread> workers;
    int spawned = helpers_only ? threads_ : threads_ - 1;
    workers.reserve(static_cast<std::size_t>(spawned));  // growing could throw while threads run
    for (int t = 0; t < spawned; ++t) {
      active_.fetch_add(1);
      try {
        workers.emplace_back([this] { work(nullptr); });
      } catch (const std::system_error&) {  // no more threads to be had: go on with those that run
        active_.fetch_sub(1);
        break;
      }
    }
    if (workers.empty() || !helpers_only) {
      active_.fetch_add(1);
      work(&tick);
    }
    wait(tick);
    for (std::thread& worker : workers) worker.join();
    if (error_) std::rethrow_exception(error_);
    if (!stopped_.load()) tick(done_.load());
    std::sort(nonfinite_.begin(), nonfinite_.end());
    nonfinite_.erase(std::unique(nonfinite_.begin(), nonfinite_.end()), nonfinite_.end());
    return {!stopped_.load(), std::move(nonfinite_)};
  }

 private:
  std::uint64_t buffered_chunk(const SegmentCost& cost) const {
    std::size_t slack = cost.buffers * (wants_direct_ ? DirectFiles::kSlack : 64);
    std::size_t room = buffer_bytes_ > slack ? buffer_bytes_ - slack : 0;
    std::uint64_t elements = room / cost.buffered;
    if (elements < kGranule) throw Error(ErrorKind::kInvalid, "the buffer is too small for one chunk of every source");
    return elements;
  }

  // Fetches chunks until none is left. With a tick (on the calling thread only) it also reports about every 50 ms.
  void work(const Tick* tick) {
    try {
      FloatEnvironment environment;
      std::unique_ptr<char, decltype(&std::free)> buffer(nullptr, &std::free);
      if (needs_buffer_) {
        buffer.reset(static_cast<char*>(std::aligned_alloc(alignment_, align_up(buffer_bytes_, alignment_))));
        if (!buffer) throw Error(ErrorKind::kMemory, "no memory for the buffers");
      }
      std::vector<const void*> pointers(max_sources_);
      std::vector<std::uint8_t> dtypes(max_sources_);
      std::vector<std::size_t> nonfinite;
      auto last_tick = std::chrono::steady_clock::now();
      while (!stopped_.load(std::memory_order_relaxed)) {
        std::uint64_t chunk = next_.fetch_add(1);
        if (chunk >= chunks_) break;
        process(chunk, buffer.get(), pointers, dtypes, nonfinite);
        if (tick == nullptr) continue;
        auto now = std::chrono::steady_clock::now();
        if (now - last_tick < kTickInterval) continue;
        last_tick = now;
        if (!(*tick)(done_.load())) stopped_.store(true);
      }
      std::lock_guard<std::mutex> lock(mutex_);
      nonfinite_.insert(nonfinite_.end(), nonfinite.begin(), nonfinite.end());
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
      stopped_.store(true);
    }
    std::lock_guard<std::mutex> lock(mutex_);
    active_.fetch_sub(1);
    finished_.notify_all();
  }

  void wait(const Tick& tick) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (active_.load() > 0) {
      if (finished_.wait_for(lock, kTickInterval, [this] { return active_.load() == 0; })) break;
      lock.unlock();
      if (!stopped_.load() && !tick(done_.load())) stopped_.store(true);
      lock.lock();
    }
  }

  void process(std::uint64_t chunk, char* buffer, std::vector<const void*>& pointers, std::vector<std::uint8_t>& dtypes,
               std::vector<std::size_t>& nonfinite) {
    auto after = std::upper_bound(first_chunk_.begin(), first_chunk_.end(), chunk);
    std::size_t index = static_cast<std::size_t>(after - first_chunk_.begin()) - 1;
    const Segment& segment = plan_.segments[index];
    std::uint64_t begin = (chunk - first_chunk_[index]) * chunk_elements_[index];
    std::uint64_t n = std::min(chunk_elements_[index], segment.n - begin);
    char* free_buffer = buffer;
    std::uint64_t moved = 0;
    for (std::size_t k = 0; k < segment.count; ++k) {
      const Place& source = plan_.sources[segment.first_source + k];
      std::size_t size = item_size(source.dtype);
      moved += n * size;
      dtypes[k] = source.dtype;
      if (source.fd < 0) {
        pointers[k] = reinterpret_cast<const char*>(source.at) + begin * size;
        continue;
      }
      pointers[k] = mapped_ ? mapped_->find(source.fd, source.at + begin * size, n * size) : nullptr;
      if (pointers[k] != nullptr) continue;
      if (direct_) {
        pointers[k] = direct_->read(source.fd, free_buffer, n * size, source.at + begin * size);
        free_buffer += align_up(n * size, alignment_) + DirectFiles::kBlock;
        continue;
      }
      read_at(source.fd, free_buffer, n * size, source.at + begin * size);
      pointers[k] = free_buffer;
      free_buffer += align_up(n * size, alignment_);
    }
    std::size_t size = item_size(segment.dst.dtype);
    bool to_file = segment.dst.fd >= 0;
    char* dst = to_file ? free_buffer : reinterpret_cast<char*>(segment.dst.at) + begin * size;
    if (compute(segment, pointers.data(), dtypes.data(), n, dst)) find_rows(index, begin, n, dst, nonfinite);
    for (std::size_t k = 0; mapped_ && k < segment.count; ++k) {
      const Place& source = plan_.sources[segment.first_source + k];
      if (source.fd >= 0) mapped_->check(source.fd, source.at + begin * item_size(source.dtype));
    }
    if (to_file) write_at(segment.dst.fd, dst, n * size, segment.dst.at + begin * size);
    done_.fetch_add(moved + n * size, std::memory_order_relaxed);
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
  const std::size_t alignment_;
  std::vector<std::uint64_t> first_chunk_;
  std::vector<std::uint64_t> chunk_elements_;
  std::uint64_t chunks_ = 0;
  std::uint64_t bytes_ = 0;
  std::uint64_t written_in_memory_ = 0;
  std::size_t max_sources_ = 0;
  bool needs_buffer_ = false;
  int threads_ = 1;

  std::unique_ptr<MappedFiles> mapped_;
  std::unique_ptr<DirectFiles> direct_;
  std::atomic<std::uint64_t> next_{0};
  std::atomic<std::uint64_t> done_{0};
  std::atomic<bool> stopped_{false};
  std::atomic<int> active_{0};
  std::mutex mutex_;
  std::condition_variable finished_;
  std::exception_ptr error_;
  std::vector<std::size_t> nonfinite_;
};

}  // namespace

Outcome run_plan(const Plan& plan, const KernelTable& kernels, const RunOptions& options, const Tick& tick) {
  if (plan.segments.empty()) return {true, {}};
  return Run(plan, kernels, options).execute(tick);
}

}  // namespace soup
