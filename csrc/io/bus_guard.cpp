// SPDX-License-Identifier: MIT
#include "bus_guard.h"

#include <signal.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <mutex>

namespace soup {
namespace {

// What the signal handler may look at: lock-free, never freed.
struct Slot {
  std::atomic<bool> taken{false};
  std::atomic<std::uintptr_t> begin{0};  // 0: not in use yet, or any more
  std::atomic<std::uintptr_t> end{0};
  std::atomic<bool> lost{false};
};

constexpr int kSlots = 4096;
Slot slots[kSlots];

std::mutex install_mutex;
int guards = 0;
struct sigaction previous;
// Two handlers that each call the other, since each was installed over the other, must end.
std::atomic<bool> passing_on{false};

void pass_on(int signal, siginfo_t* info, void* context) {
  bool again = passing_on.exchange(true);
  if (!again && (previous.sa_flags & SA_SIGINFO) != 0) {
    previous.sa_sigaction(signal, info, context);
  } else if (!again && previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
    previous.sa_handler(signal);
  } else {
    // Nobody's: the faulting instruction is repeated and ends the process as it would have without us.
    ::signal(SIGBUS, SIG_DFL);
  }
  passing_on.store(false);
}

void handle(int signal, siginfo_t* info, void* context) {
  int saved_errno = errno;
  auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
  for (Slot& slot : slots) {
    std::uintptr_t begin = slot.begin.load();
    std::uintptr_t end = slot.end.load();
    // Another run may be giving the slot back and a third one taking it: both numbers must be of one range.
    if (begin == 0 || address < begin || address >= end || slot.begin.load() != begin) continue;
    // The same place, now of zeros: the reader goes on to its next look at the flag. mmap is a plain system call.
    void* zeros = ::mmap(reinterpret_cast<void*>(begin), end - begin, PROT_READ,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    if (zeros == MAP_FAILED) break;
    slot.lost.store(true);
    errno = saved_errno;
    return;
  }
  errno = saved_errno;
  pass_on(signal, info, context);
}

bool install() {
  std::lock_guard<std::mutex> lock(install_mutex);
  if (guards == 0) {
    struct sigaction action = {};
    action.sa_sigaction = &handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    ::sigemptyset(&action.sa_mask);
    if (::sigaction(SIGBUS, &action, &previous) != 0) return false;
  }
  ++guards;
  return true;
}

void uninstall() {
  std::lock_guard<std::mutex> lock(install_mutex);
  if (--guards > 0) return;
  struct sigaction current = {};
  // Somebody may have put a handler over ours meanwhile, and ours behind it: then both stay.
  if (::sigaction(SIGBUS, nullptr, &current) == 0 && current.sa_sigaction == &handle) {
    ::sigaction(SIGBUS, &previous, nullptr);
  }
}

}  // namespace

BusGuard::BusGuard(char* begin, std::size_t size) : slot_(-1) {
  if (!install()) return;
  for (int i = 0; i < kSlots; ++i) {
    if (slots[i].taken.exchange(true)) continue;
    slot_ = i;
    slots[i].lost.store(false);
    slots[i].end.store(reinterpret_cast<std::uintptr_t>(begin) + size);
    slots[i].begin.store(reinterpret_cast<std::uintptr_t>(begin));
    return;
  }
  uninstall();
}

BusGuard::~BusGuard() {
  if (slot_ < 0) return;
  slots[slot_].begin.store(0);
  slots[slot_].end.store(0);
  slots[slot_].taken.store(false);
  uninstall();
}

bool BusGuard::lost() const { return slot_ >= 0 && slots[slot_].lost.load(std::memory_order_acquire); }

}  // namespace soup
