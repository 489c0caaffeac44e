// SPDX-License-Identifier: MIT
// The device's side of a staged run: slots that have a pinned half on the host and one on the device, and the streams
// that fill them, sum what they hold and bring results back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "staged_handles.h"
#include "staged_fill.h"

namespace soup {

class Ring {
 public:
  struct Slot {
    Slot(int device, char* on_host, char* on_device, bool timed);

    char* host;
    char* device;
    OwnedEvent sent, summed, returned;
    // When these three began; only where the run is timed.
    std::unique_ptr<OwnedEvent> send, sum, bring;
  };

  // Copies and sums of a chunk, in seconds from the ring's start, [begin, end]; equal where there was nothing to do.
  struct Times {
    double copy[2], kernel[2], back[2];
  };

  // The ring sums after what is queued in the stream `after`. Slots begin at pages.
  Ring(int device, device::Stream after, std::size_t slots, std::size_t slot_bytes, std::size_t rows, bool timed);

  Slot& slot(std::size_t index) { return *slots_[index]; }

  // Queues all that the device has to do with a slot that was filled. From any thread, but one thread a slot.
  void launch(Slot& slot, const FilledChunk& chunk);
  // Waits until that is done: the results are in the slot, and it may be filled again.
  void wait(const Slot& slot, const FilledChunk& chunk) const;
  // After wait().
  Times times(const Slot& slot, const FilledChunk& chunk) const;
  // Waits for everything; the rows with results that are not finite, ascending.
  std::vector<std::size_t> flagged_rows();

 private:
  const int device_;
  const std::size_t rows_;
  // In this order: streams go first, when their work is done, and the memory that they use last.
  PinnedMemory host_;
  DeviceMemory memory_;  // of the slots, and after them the rows' flags
  char* const flags_;
  OwnedEvent before_;
  std::unique_ptr<OwnedEvent> start_;
  std::vector<std::unique_ptr<Slot>> slots_;
  OwnedStream copy_;
  OwnedStream compute_;
  OwnedStream back_;
  std::mutex mutex_;
};

}  // namespace soup
