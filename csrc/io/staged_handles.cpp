// SPDX-License-Identifier: MIT
#include "staged_handles.h"

#include <mutex>
#include <utility>

namespace soup {
namespace {

struct Kept {
  std::mutex mutex;
  std::size_t bytes = 0;
  char* at = nullptr;
};

// Never destroyed: when a process ends the driver may be gone before it.
Kept& kept() {
  static Kept* block = new Kept;
  return *block;
}

}  // namespace

PinnedMemory::PinnedMemory(int device, std::size_t bytes) : bytes_(bytes), at_(nullptr) {
  std::lock_guard<std::mutex> lock(kept().mutex);
  char* block = std::exchange(kept().at, nullptr);
  if (block != nullptr && kept().bytes != bytes) {
    device::pinned_free(block);
    block = nullptr;
  }
  at_ = block != nullptr ? block : static_cast<char*>(device::pinned_allocate(device, bytes));
}

PinnedMemory::~PinnedMemory() {
  std::lock_guard<std::mutex> lock(kept().mutex);
  if (kept().at != nullptr) device::pinned_free(kept().at);
  kept().at = at_;
  kept().bytes = bytes_;
}

}  // namespace soup
