// SPDX-License-Identifier: MIT
#include "staged.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "../errors.h"
#include "direct.h"
#include "mapped.h"
#include "positional.h"
#include "staged_chunks.h"
#include "staged_fill.h"
#include "staged_ring.h"

namespace soup {
namespace {

constexpr auto kTickInterval = std::chrono::milliseconds(50);
// A thread fills one of its slots while the other one is copied and summed.
constexpr std::size_t kSlotsPerThread = 2;
// Slots shorter than this spend more time on the launches than on the bytes, and those that hold less of a source on
// the reads; longer ones than that bring nothing.
constexpr std::size_t kShortSlot = 1u << 20;
constexpr std::size_t kShortRead = 32u << 10;
constexpr std::size_t kLongSlot = 4u << 20;
constexpr std::size_t kPage = 4096;

const SlotLayout kCached;
const SlotLayout kDirect{DirectFiles::kBlock, DirectFiles::kSlack};

struct Shape {
  int threads;
  std::size_t slots;  // of each
  std::size_t slot_bytes;
};

// As many threads as are wanted while their slots are not too short, and slots no longer than the work asks for.
Shape shape_of(const Plan& plan, const SlotLayout& layout, const StagedOptions& options) {
  std::size_t least = staged_minimum(plan, layout);
  if (options.memory < least) {
    throw Error(ErrorKind::kInvalid, "the memory is too small for one chunk of every source");
  }
  std::size_t sources = 0;
  for (const Segment& segment : plan.segments) sources = std::max(sources, segment.count);
  std::size_t short_slot = std::max({least, kShortSlot, sources * kShortRead});
  std::size_t wanted = short_slot * kSlotsPerThread;
  std::size_t threads = std::min<std::size_t>(static_cast<std::size_t>(std::max(options.threads, 1)),
                                              std::max<std::size_t>(options.memory / wanted, 1));
  std::size_t slots = options.memory >= 2 * least ? kSlotsPerThread : 1;
  std::size_t share = options.memory / (threads * slots);
  std::size_t enough = static_cast<std::size_t>(staged_bytes(plan) / (threads * kSlotsPerThread)) + kPage;
  std::size_t slot = std::min({share, std::max(kLongSlot, short_slot), std::max(enough, kShortSlot)});
  slot = std::max(slot / kPage * kPage, least);
  return {static_cast<int>(threads), slots, slot};
}

// Threads that have ended when this goes; told to stop where it goes before they were waited for.
class Threads {
 public:
  explicit Threads(std::atomic<bool>& stopped) : stopped_(stopped) {}
  ~Threads() {
    if (!threads_.empty()) stopped_.store(true);
    join();
  }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  template <class Body>
  void start(int count, const Body& body) {
    threads_.reserve(static_cast<std::size_t>(count));  // growing could throw while threads run
    try {
      for (int t = 0; t < count; ++t) threads_.emplace_back(body, t);
    } catch (const std::system_error&) {  // no more threads to be had: go on with those that run
      if (threads_.empty()) throw Error(ErrorKind::kMemory, "no thread to read with can be started");
    }
  }
  int count() const { return static_cast<int>(threads_.size()); }
  void join() {
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

 private:
  std::atomic<bool>& stopped_;
  std::vector<std::thread> threads_;
};

class StagedRun {
 public:
  StagedRun(const Plan& plan, const StagedOptions& options)
      : plan_(plan), options_(options), direct_layout_(wants_direct()), layout_(direct_layout_ ? kDirect : kCached) {
    shape_ = shape_of(plan, layout_, options);
    chunks_ = std::make_unique<StagedChunks>(plan, shape_.slot_bytes, layout_);
    shape_.threads = std::min<int>(shape_.threads, static_cast<int>(std::max<std::size_t>(chunks_->count(), 1)));
  }

  StagedOutcome execute(const Tick& tick) {
    StagedOutcome outcome;
    outcome.threads = shape_.threads;
    outcome.memory = static_cast<std::size_t>(shape_.threads) * shape_.slots * shape_.slot_bytes;
    if (chunks_->count() > 0) {
      if (direct_layout_) {
        mapped_ = std::make_unique<MappedFiles>(plan_, false);
        direct_ = std::make_unique<DirectFiles>(plan_);
      }
      std::size_t slots = static_cast<std::size_t>(shape_.threads) * shape_.slots;
      ring_ = std::make_unique<Ring>(options_.device, options_.after, slots, shape_.slot_bytes, plan_.row_ends.size(),
                                     options_.timeline);
      started_ = std::chrono::steady_clock::now();
      run_threads(tick);
      if (error_) std::rethrow_exception(error_);
      if (!stopped_.load()) outcome.nonfinite = ring_->flagged_rows();
    }
    outcome.finished = !stopped_.load();
    if (outcome.finished) tick(done_.load());
    outcome.timeline = std::move(timeline_);
    return outcome;
  }

 private:
  bool wants_direct() const { return options_.direct && options_.memory >= 2 * staged_minimum(plan_, kDirect); }

  // A slot that was filled and whose work on the device may not be done yet.
  struct Flight {
    Ring::Slot* slot = nullptr;
    FilledChunk chunk;
    ChunkTimes times;
    bool flying = false;
  };

  void run_threads(const Tick& tick) {
    Threads workers(stopped_);
    workers.start(shape_.threads, [this](int thread) { work(thread); });
    std::unique_lock<std::mutex> lock(mutex_);
    auto all_ended = [&] { return ended_ == workers.count(); };
    while (!finished_.wait_for(lock, kTickInterval, all_ended)) {
      lock.unlock();
      if (!stopped_.load() && !tick(done_.load())) stopped_.store(true);
      lock.lock();
    }
    lock.unlock();
    workers.join();
  }

  // Fetches chunks until none is left, each into the slot that has waited longest.
  void work(int thread) {
    try {
      SlotFiller filler(plan_, layout_, mapped_.get(), direct_.get());
      std::vector<Flight> flights(shape_.slots);
      for (std::size_t i = 0; i < flights.size(); ++i) {
        flights[i].slot = &ring_->slot(static_cast<std::size_t>(thread) * shape_.slots + i);
        flights[i].times.thread = thread;
      }
      std::size_t turn = 0;
      for (; !stopped_.load(std::memory_order_relaxed); ++turn) {
        std::size_t chunk = next_.fetch_add(1);
        if (chunk >= chunks_->count()) break;
        Flight& flight = flights[turn % flights.size()];
        land(flight);
        if (!take_off(filler, chunk, flight)) break;
      }
      for (std::size_t i = 0; i < flights.size(); ++i) land(flights[(turn + i) % flights.size()]);
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
      stopped_.store(true);
    }
    std::lock_guard<std::mutex> lock(mutex_);
    ++ended_;
    finished_.notify_all();
  }

  bool take_off(SlotFiller& filler, std::size_t chunk, Flight& flight) {
    Ring::Slot& slot = *flight.slot;
    flight.times.read[0] = now();
    if (!filler.fill(chunks_->begin(chunk), chunks_->end(chunk), slot.host, shape_.slot_bytes, slot.device,
                     flight.chunk, stopped_)) {
      return false;
    }
    flight.times.read[1] = now();
    ring_->launch(slot, flight.chunk);
    flight.flying = true;
    return true;
  }

  // Waits for the slot's work and carries its results where they belong. A run that was stopped writes nothing more.
  void land(Flight& flight) {
    if (!flight.flying || stopped_.load()) return;
    flight.flying = false;
    ring_->wait(*flight.slot, flight.chunk);
    flight.times.write[0] = now();
    for (const FilledChunk::Result& result : flight.chunk.results) {
      const char* bytes = flight.slot->host + result.at;
      if (result.to.fd == kOnHost) {
        std::memcpy(reinterpret_cast<char*>(result.to.at), bytes, result.bytes);
      } else {
        write_at(result.to.fd, bytes, result.bytes, result.to.at);
      }
    }
    flight.times.write[1] = now();
    done_.fetch_add(flight.chunk.moved, std::memory_order_relaxed);
    if (options_.timeline) record(flight);
  }

  void record(Flight& flight) {
    Ring::Times device = ring_->times(*flight.slot, flight.chunk);
    flight.times.bytes = flight.chunk.sent;
    std::copy(device.copy, device.copy + 2, flight.times.copy);
    std::copy(device.kernel, device.kernel + 2, flight.times.kernel);
    std::copy(device.back, device.back + 2, flight.times.back);
    std::lock_guard<std::mutex> lock(mutex_);
    timeline_.push_back(flight.times);
  }

  double now() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count(); }

  const Plan& plan_;
  const StagedOptions options_;
  const bool direct_layout_;
  const SlotLayout layout_;
  Shape shape_{};
  std::unique_ptr<StagedChunks> chunks_;
  std::unique_ptr<MappedFiles> mapped_;
  std::unique_ptr<DirectFiles> direct_;
  std::unique_ptr<Ring> ring_;
  std::chrono::steady_clock::time_point started_;

  std::atomic<std::size_t> next_{0};
  std::atomic<std::uint64_t> done_{0};
  std::atomic<bool> stopped_{false};
  std::mutex mutex_;
  std::condition_variable finished_;
  int ended_ = 0;
  std::exception_ptr error_;
  std::vector<ChunkTimes> timeline_;
};

}  // namespace

std::size_t staged_memory(const Plan& plan) { return staged_minimum(plan, kCached); }

StagedOutcome run_staged(const Plan& plan, const StagedOptions& options, const Tick& tick) {
  if (plan.segments.empty()) return {};
  return StagedRun(plan, options).execute(tick);
}

}  // namespace soup
