// SPDX-License-Identifier: MIT
// What the system may do and seldom does: a read or write of fewer bytes than asked for, or none because of a signal.
// The linker puts these in the place of pread, preadv and pwrite (--wrap in CMakeLists.txt), in the tests only.
#include <sys/types.h>
#include <sys/uio.h>

#include <atomic>
#include <cerrno>
#include <cstddef>

#include "direct_reads.h"

namespace {

// Every third call moves about half, every fifth nothing.
std::atomic<unsigned> calls{0};

bool interrupted(std::size_t& bytes) {
  unsigned call = calls.fetch_add(1);
  if (call % 3 == 1 && bytes > 1) bytes = bytes / 2 + call % 2;
  if (call % 5 != 4) return false;
  errno = EINTR;
  return true;
}

}  // namespace

namespace direct_reads {

std::atomic<Behaviour> behaviour{Behaviour::kAsIs};
std::atomic<std::size_t> calls{0};
std::atomic<std::size_t> bytes{0};

}  // namespace direct_reads

extern "C" {
ssize_t __real_pread(int fd, void* buffer, std::size_t bytes, off_t offset);
ssize_t __real_pwrite(int fd, const void* buffer, std::size_t bytes, off_t offset);
ssize_t __real_preadv(int fd, const iovec* parts, int count, off_t offset);

ssize_t __wrap_pread(int fd, void* buffer, std::size_t bytes, off_t offset) {
  return interrupted(bytes) ? -1 : __real_pread(fd, buffer, bytes, offset);
}

ssize_t __wrap_pwrite(int fd, const void* buffer, std::size_t bytes, off_t offset) {
  return interrupted(bytes) ? -1 : __real_pwrite(fd, buffer, bytes, offset);
}

// Direct reads end at multiples of 512 bytes, or not at all: every third call moves about half, every fifth nothing.
ssize_t __wrap_preadv(int fd, const iovec* parts, int count, off_t offset) {
  std::size_t call = direct_reads::calls.fetch_add(1);
  iovec part = *parts;
  direct_reads::Behaviour now = direct_reads::behaviour.load();
  bool fails = now == direct_reads::Behaviour::kRefused || (now == direct_reads::Behaviour::kShort && call % 5 == 4);
  if (count != 1 || fails) {
    errno = now == direct_reads::Behaviour::kShort ? EINTR : EINVAL;
    return -1;
  }
  if (now == direct_reads::Behaviour::kShort && call % 3 == 1 && part.iov_len > 512) {
    std::size_t unit = call % 2 == 0 && part.iov_len > 8192 ? 4096 : 512;
    part.iov_len = part.iov_len / 2 / unit * unit;
  }
  ssize_t got = __real_preadv(fd, &part, 1, offset);
  if (got > 0) direct_reads::bytes.fetch_add(static_cast<std::size_t>(got));
  return got;
}
}
