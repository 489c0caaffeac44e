// SPDX-License-Identifier: MIT
// Lanes as threads. What orders them is the lock of the barrier or of the warp that they meet at, and nothing else, so
// that ThreadSanitizer sees every access that no barrier orders.
#include "emulate_block.h"

#if defined(SOUP_EMULATE_THREADS)

namespace emulate {
namespace {

thread_local Lane* current = nullptr;

}  // namespace

Lane& lane() { return *current; }

void wait_for_warp(std::uint64_t value, unsigned mask) {
  Lane& self = *current;
  Block::Meeting& meeting = self.block->warps[self.warp()];
  std::unique_lock<std::mutex> lock(meeting.mutex);
  self.value = value;
  self.mask = mask;
  self.wait = Wait::kLanes;
  if (warp_complete(self)) {
    meeting.changed.notify_all();
  } else {
    meeting.changed.wait(lock, [&self] { return self.wait == Wait::kNone; });
  }
}

int wait_for_block(int count) {
  Lane& self = *current;
  Block& block = *self.block;
  std::unique_lock<std::mutex> lock(block.all.mutex);
  self.wait = Wait::kBlock;
  block.counted += count;
  if (++block.arrived < block.lanes.size()) {
    block.all.changed.wait(lock, [&self] { return self.wait == Wait::kNone; });
    return self.counted;
  }
  for (Lane& other : block.lanes) {
    other.wait = Wait::kNone;
    other.counted = block.counted;
  }
  block.arrived = 0;
  block.counted = 0;
  block.all.changed.notify_all();
  return self.counted;
}

void run(Block& block) {
  std::vector<std::thread> threads;
  block.warps = std::vector<Block::Meeting>((block.lanes.size() + kWarp - 1) / kWarp);
  for (Lane& self : block.lanes) {
    threads.emplace_back([&self, &block] {
      current = &self;
      block.body();
      std::lock_guard<std::mutex> lock(block.warps[self.warp()].mutex);
      self.wait = Wait::kDone;
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace emulate

#endif
