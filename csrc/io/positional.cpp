// SPDX-License-Identifier: MIT
#include "positional.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "../errors.h"

namespace soup {

void read_at(int fd, void* buffer, std::size_t bytes, std::uint64_t offset) {
  char* at = static_cast<char*>(buffer);
  while (bytes > 0) {
    ssize_t got = ::pread(fd, at, bytes, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw Error(ErrorKind::kRead, std::strerror(errno), fd, offset, errno);
    if (got == 0) {
      throw Error(ErrorKind::kShortRead, "file ends " + std::to_string(bytes) + " bytes too early", fd, offset, 0);
    }
    at += got;
    offset += static_cast<std::uint64_t>(got);
    bytes -= static_cast<std::size_t>(got);
  }
}

void write_at(int fd, const void* buffer, std::size_t bytes, std::uint64_t offset) {
  const char* at = static_cast<const char*>(buffer);
  while (bytes > 0) {
    ssize_t put = ::pwrite(fd, at, bytes, static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) {
      int code = put < 0 ? errno : ENOSPC;
      throw Error(ErrorKind::kWrite, std::strerror(code), fd, offset, code);
    }
    at += put;
    offset += static_cast<std::uint64_t>(put);
    bytes -= static_cast<std::size_t>(put);
  }
}

}  // namespace soup
