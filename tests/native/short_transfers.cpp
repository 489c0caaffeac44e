// SPDX-License-Identifier: MIT
// What the system may do and seldom does: a read or write of fewer bytes than asked for, or none because of a signal.
// The linker puts these in the place of pread and pwrite (--wrap in CMakeLists.txt), in the tests only.
#include <sys/types.h>

#include <atomic>
#include <cerrno>
#include <cstddef>

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

extern "C" {
ssize_t __real_pread(int fd, void* buffer, std::size_t bytes, off_t offset);
ssize_t __real_pwrite(int fd, const void* buffer, std::size_t bytes, off_t offset);

ssize_t __wrap_pread(int fd, void* buffer, std::size_t bytes, off_t offset) {
  return interrupted(bytes) ? -1 : __real_pread(fd, buffer, bytes, offset);
}

ssize_t __wrap_pwrite(int fd, const void* buffer, std::size_t bytes, off_t offset) {
  return interrupted(bytes) ? -1 : __real_pwrite(fd, buffer, bytes, offset);
}
}
