// SPDX-License-Identifier: MIT
// Streams, events and memory of a GPU that are given back when their owner goes. A stream goes when its work is done:
// declare it after the memory that it uses.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../device.h"

namespace soup {

class OwnedStream {
 public:
  explicit OwnedStream(int device) : device_(device), handle_(device::stream_create(device)) {}
  ~OwnedStream() { device::stream_destroy(device_, handle_); }
  OwnedStream(const OwnedStream&) = delete;
  OwnedStream& operator=(const OwnedStream&) = delete;
  device::Stream get() const { return handle_; }

 private:
  const int device_;
  const device::Stream handle_;
};

class OwnedEvent {
 public:
  OwnedEvent(int device, bool timed) : device_(device), handle_(device::event_create(device, timed)) {}
  ~OwnedEvent() { device::event_destroy(device_, handle_); }
  OwnedEvent(const OwnedEvent&) = delete;
  OwnedEvent& operator=(const OwnedEvent&) = delete;
  device::Event get() const { return handle_; }

 private:
  const int device_;
  const device::Event handle_;
};

// Memory by device.h. `bytes`: what there is, at least what was asked for.
struct Block {
  int device = 0;
  std::size_t bytes = 0;
  char* at = nullptr;
};

// Memory of a device. To give it back waits for all that the device does, for whomever, so the last block is kept, for
// the next run on the device that wants as much or up to 1 MiB less.
class DeviceMemory {
 public:
  DeviceMemory(int device, std::size_t bytes);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  char* get() const { return block_.at; }

 private:
  const Block block_;
};

// Host memory that every device reads and writes by itself. Pinning it takes longer than reading as much from the page
// cache, so the last block is kept, for the next run that wants as much.
class PinnedMemory {
 public:
  PinnedMemory(int device, std::size_t bytes);
  ~PinnedMemory();
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;
  char* get() const { return block_.at; }

 private:
  const Block block_;
};

}  // namespace soup
