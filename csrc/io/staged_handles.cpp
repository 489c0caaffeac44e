// SPDX-License-Identifier: MIT
#include "staged_handles.h"

#include <mutex>
#include <utility>

namespace soup {
namespace {

// The last block that was given back. Never destroyed: when a process ends the driver may be gone before it, and takes
// all memory back itself.
class Kept {
 public:
  // One that suits, or none: what does not is freed, before more is asked for.
  template <class Suits>
  Block take(const Suits& suits) {
    std::lock_guard<std::mutex> lock(mutex_);
    Block block = std::exchange(block_, Block{});
    if (block.at == nullptr || suits(block)) return block;
    free_(block.device, block.at);
    return {};
  }
  void keep(const Block& block) {
    std::lock_guard<std::mutex> lock(mutex_);
    Block before = std::exchange(block_, block);
    if (before.at != nullptr) free_(before.device, before.at);
  }

  explicit Kept(void (*free)(int, void*) noexcept) : free_(free) {}

 private:
  void (*const free_)(int, void*) noexcept;
  std::mutex mutex_;
  Block block_;
};

Kept& kept_on_device() {
  static Kept* kept = new Kept(&device::free);
  return *kept;
}

Kept& kept_pinned() {
  static Kept* kept = new Kept(&device::pinned_free);
  return *kept;
}

Block on_device(int device, std::size_t bytes) {
  constexpr std::size_t more = 1u << 20;
  Block block = kept_on_device().take([&](const Block& found) {
    return found.device == device && bytes <= found.bytes && found.bytes - bytes <= more;
  });
  return block.at != nullptr ? block : Block{device, bytes, static_cast<char*>(device::allocate(device, bytes))};
}

Block pinned(int device, std::size_t bytes) {
  Block block = kept_pinned().take([&](const Block& found) { return found.bytes == bytes; });
  return block.at != nullptr ? block : Block{device, bytes, static_cast<char*>(device::pinned_allocate(device, bytes))};
}

}  // namespace

DeviceMemory::DeviceMemory(int device, std::size_t bytes) : block_(on_device(device, bytes)) {}
DeviceMemory::~DeviceMemory() { kept_on_device().keep(block_); }

PinnedMemory::PinnedMemory(int device, std::size_t bytes) : block_(pinned(device, bytes)) {}
PinnedMemory::~PinnedMemory() { kept_pinned().keep(block_); }

}  // namespace soup
