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
  // Does not own the mapping, which must outlive the guard. lost() is true at once where no more guards can be had.
  BusGuard(char* begin, std::size_t size);
  ~BusGuard();
  BusGuard(const BusGuard&) = delete;
  BusGuard& operator=(const BusGuard&) = delete;

  bool lost() const;

 private:
  int slot_;
};

}  // namespace soup
