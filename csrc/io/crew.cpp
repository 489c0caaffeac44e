// SPDX-License-Identifier: MIT
#include "crew.h"

#include <algorithm>
#include <chrono>
#include <system_error>
#include <thread>
#include <vector>

#include "../float_environment.h"

namespace soup {
namespace {

constexpr auto kTickInterval = std::chrono::milliseconds(50);

}  // namespace

bool Crew::run(std::uint64_t chunks, const Make& make, const Tick& tick) {
  chunks_ = chunks;
  next_.store(0);
  int threads = static_cast<int>(std::max<std::uint64_t>(1, std::min<std::uint64_t>(threads_, chunks)));
  std::vector<std::thread> workers;
  int spawned = helpers_only_ ? threads : threads - 1;
  workers.reserve(static_cast<std::size_t>(spawned));  // growing could throw while threads run
  for (int t = 0; t < spawned; ++t) {
    active_.fetch_add(1);
    try {
      workers.emplace_back([this, &make] { work(make, nullptr); });
    } catch (const std::system_error&) {  // no more threads to be had: go on with those that run
      active_.fetch_sub(1);
      break;
    }
  }
  if (workers.empty() || !helpers_only_) {
    active_.fetch_add(1);
    work(make, &tick);
  }
  wait(tick);
  for (std::thread& worker : workers) worker.join();
  if (error_) std::rethrow_exception(error_);
  if (!stopped_.load() && !tick(done_.load())) stopped_.store(true);
  return !stopped_.load();
}

// Fetches chunks until none is left. With a tick (on the calling thread only) it also reports about every 50 ms.
void Crew::work(const Make& make, const Tick* tick) {
  try {
    FloatEnvironment environment;
    std::unique_ptr<CrewMember> member = make();
    auto last_tick = std::chrono::steady_clock::now();
    while (!stopped_.load(std::memory_order_relaxed)) {
      std::uint64_t chunk = next_.fetch_add(1);
      if (chunk >= chunks_) break;
      member->process(chunk);
      if (tick == nullptr) continue;
      auto now = std::chrono::steady_clock::now();
      if (now - last_tick < kTickInterval) continue;
      last_tick = now;
      if (!(*tick)(done_.load())) stopped_.store(true);
    }
    std::lock_guard<std::mutex> lock(mutex_);
    member->finish();
  } catch (...) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!error_) error_ = std::current_exception();
    stopped_.store(true);
  }
  std::lock_guard<std::mutex> lock(mutex_);
  active_.fetch_sub(1);
  finished_.notify_all();
}

void Crew::wait(const Tick& tick) {
  std::unique_lock<std::mutex> lock(mutex_);
  while (active_.load() > 0) {
    if (finished_.wait_for(lock, kTickInterval, [this] { return active_.load() == 0; })) break;
    lock.unlock();
    if (!stopped_.load() && !tick(done_.load())) stopped_.store(true);
    lock.lock();
  }
}

}  // namespace soup
