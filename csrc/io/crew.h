// SPDX-License-Identifier: MIT
// Threads that share the numbered chunks of a run; one seam for progress, cancellation and errors.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>

namespace soup {

// Called on the calling thread about every 50 ms with the bytes moved so far; false stops the run.
using Tick = std::function<bool(std::uint64_t)>;

// What one thread has of its own: made on that thread, in the default floating-point environment.
class CrewMember {
 public:
  virtual ~CrewMember() = default;
  virtual void process(std::uint64_t chunk) = 0;
  // After its last chunk, if it met no error; one member at a time.
  virtual void finish() {}
};

class Crew {
 public:
  using Make = std::function<std::unique_ptr<CrewMember>()>;

  // Below this many bytes a run stays on the calling thread: starting a thread costs more.
  static constexpr std::uint64_t kInlineBytes = 1u << 20;

  // With helpers_only the calling thread does nothing but wait: a read that blocks must not block Ctrl-C.
  Crew(int threads, bool helpers_only) : threads_(threads), helpers_only_(helpers_only) {}
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  // Has chunks 0 to chunks - 1 processed, each once, by members that `make` makes, and waits for all of them. Returns
  // whether all was done: false if tick, which must not throw, stopped it. What a member throws is thrown again after
  // all have ended, the others after their current chunk. After either there is no further run.
  bool run(std::uint64_t chunks, const Make& make, const Tick& tick);

  // Bytes that were moved, for tick: of all runs together.
  void count(std::uint64_t bytes) { done_.fetch_add(bytes, std::memory_order_relaxed); }

 private:
  void work(const Make& make, const Tick* tick);
  void wait(const Tick& tick);

  const int threads_;
  const bool helpers_only_;
  std::uint64_t chunks_ = 0;
  std::atomic<std::uint64_t> next_{0};
  std::atomic<std::uint64_t> done_{0};
  std::atomic<bool> stopped_{false};
  std::atomic<int> active_{0};
  std::mutex mutex_;
  std::condition_variable finished_;
  std::exception_ptr error_;
};

}  // namespace soup
