// SPDX-License-Identifier: MIT
// A GPU that is not there, behind csrc/device.h: a thread a stream, so that work truly runs beside the host, memory
// that the host cannot touch, sums by the kernels of the CPU, and faults on request. What is forgotten in the order of
// a run's work is a wrong result here, a crash, or a race that ThreadSanitizer sees.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace fake {

// Every piece of work takes up to this long.
extern std::atomic<int> most_microseconds;
// The call, counted from now, that fails; 0 for none.
extern std::atomic<int> failing_allocation, failing_pinning, failing_launch, failing_wait;
// Faults of the caller, made on purpose: streams and hosts that do not wait for events.
extern std::atomic<bool> streams_do_not_wait, hosts_do_not_wait;

// Streams and events that exist; blocks of memory on the device, that are not a test's own; pinned ones.
int live();
int live_on_device();
int live_pinned();
// Blocks of memory that were given back: each time the device stands still.
int freed();

// Device memory, as an address in plans, from and to bytes of the host.
class Bytes {
 public:
  explicit Bytes(std::size_t bytes);
  explicit Bytes(const std::vector<unsigned char>& bytes);
  ~Bytes();
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  std::uint64_t address() const;
  std::vector<unsigned char> read() const;

 private:
  std::size_t size_;
  void* at_;
};

// Keeps everything that comes after it in this stream waiting until it goes.
class Busy {
 public:
  explicit Busy(std::uint64_t stream);
  ~Busy();
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace fake
