// SPDX-License-Identifier: MIT
// Lanes as fibers, kept from launch to launch. A fiber is entered by swapcontext once and by _longjmp from then on,
// which makes no system call.
#undef _FORTIFY_SOURCE  // some distributions' compilers define it, and its longjmp refuses to go from stack to stack
#include "emulate_block.h"

#if !defined(SOUP_EMULATE_THREADS)

#include <csetjmp>
#include <memory>
#include <numeric>

#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulate {
namespace {

constexpr std::size_t kStack = 256 * 1024;

struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStack]};
  ucontext_t start;
  jmp_buf resume;
  bool started = false;
  void* fake = nullptr;  // AddressSanitizer's
};

std::vector<std::unique_ptr<Fiber>> fibers;
jmp_buf scheduler;
ucontext_t scheduler_context;
Lane* current = nullptr;
Shuffle shuffle;
// AddressSanitizer wants to know every stack that is switched to.
void* scheduler_fake = nullptr;
const void* scheduler_stack = nullptr;
std::size_t scheduler_size = 0;

void leaving(void** fake, const void* bottom, std::size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake, bottom, size);
#else
  (void)fake, (void)bottom, (void)size;
#endif
}

void entered(void* fake, const void** bottom, std::size_t* size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, bottom, size);
#else
  (void)fake, (void)bottom, (void)size;
#endif
}

__attribute__((noinline)) void to_scheduler() {
  Fiber& fiber = *fibers[current->number];
  leaving(&fiber.fake, scheduler_stack, scheduler_size);
  if (_setjmp(fiber.resume) == 0) _longjmp(scheduler, 1);
  entered(fiber.fake, &scheduler_stack, &scheduler_size);
}

void fiber_main() {
  entered(nullptr, &scheduler_stack, &scheduler_size);
  for (;;) {
    current->block->body();
    current->wait = Wait::kDone;
    to_scheduler();
  }
}

__attribute__((noinline)) void to_fiber(Lane& next) {
  current = &next;
  Fiber& fiber = *fibers[next.number];
  leaving(&scheduler_fake, fiber.stack.get(), kStack);
  if (_setjmp(scheduler) == 0) {
    if (fiber.started) _longjmp(fiber.resume, 1);
    fiber.started = true;
    swapcontext(&scheduler_context, &fiber.start);
  }
  entered(scheduler_fake, nullptr, nullptr);
}

void make_fibers(std::size_t count) {
  while (fibers.size() < count) {
    fibers.push_back(std::make_unique<Fiber>());
    Fiber& fiber = *fibers.back();
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, fiber_main, 0);
  }
}

}  // namespace

Lane& lane() { return *current; }

void wait_for_warp(std::uint64_t value, unsigned mask) {
  Lane& self = *current;
  self.value = value;
  self.mask = mask;
  self.wait = Wait::kLanes;
  if (!warp_complete(self)) to_scheduler();
}

int wait_for_block(int count) {
  Lane& self = *current;
  Block& block = *self.block;
  self.wait = Wait::kBlock;
  block.counted += count;
  if (++block.arrived < block.lanes.size()) {
    to_scheduler();
    return self.counted;
  }
  for (Lane& other : block.lanes) {
    other.wait = Wait::kNone;
    other.counted = block.counted;
  }
  block.arrived = 0;
  block.counted = 0;
  return self.counted;
}

void run(Block& block) {
  make_fibers(block.lanes.size());
  std::vector<unsigned> order(block.lanes.size());
  std::iota(order.begin(), order.end(), 0u);
  for (std::size_t left = order.size(); left > 0;) {
    shuffle(order);
    bool moved = false;
    for (unsigned number : order) {
      Lane& next = block.lanes[number];
      if (next.wait != Wait::kNone) continue;
      to_fiber(next);
      moved = true;
      if (next.wait == Wait::kDone) --left;
    }
    if (!moved) stop("deadlock: lanes wait for others that have ended or wait elsewhere");
  }
}

}  // namespace emulate

#endif
