// SPDX-License-Identifier: MIT
// A file that somebody cuts short while it is mapped must not kill the process: reading behind its new end raises
// SIGBUS. While a guard lives, such a fault in its range turns the whole range into zeros and sets a flag; the reader
// looks at the flag before it uses what it has read. Faults elsewhere go to whoever handled SIGBUS before.
#pragma once

#include <atomic>
#include <cstddef>

namespace soup {

class BusGuard {
 public:
  // Does not own the mapping, which must outlive the guard. There are 4,096 guards in a process; without one there is
  // no protection, and the mapping should not be read.
  BusGuard(char* begin, std::size_t size);
  ~BusGuard();
  BusGuard(const BusGuard&) = delete;
  BusGuard& operator=(const BusGuard&) = delete;

  bool protects() const { return slot_ >= 0; }
  bool lost() const;

 private:
  int slot_;
};

}  // namespace soup
