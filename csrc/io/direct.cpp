// SPDX-License-Identifier: MIT
#include "direct.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "positional.h"
#if defined(__linux__)
#include <fcntl.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>
#endif

namespace soup {

#if defined(__linux__)
namespace {

// File systems on a local disk whose cache is the page cache, by the magic numbers of statfs(2). Others open files for
// direct reads too and are slower then: they have a cache of their own (ZFS), or read ahead over a network.
constexpr std::uint32_t kLocal[] = {
    0xEF53,      // ext2, ext3, ext4
    0x58465342,  // XFS
    0x9123683E,  // Btrfs
    0xF2F52010,  // F2FS
    0x794C7630,  // overlayfs, which asks the one below
};

bool is_local(int fd) {
  struct statfs system;
  if (::fstatfs(fd, &system) != 0) return false;
  auto magic = static_cast<std::uint32_t>(system.f_type);
  return std::find(std::begin(kLocal), std::end(kLocal), magic) != std::end(kLocal);
}

// The same file once more; the flag cannot be set on the descriptor, which others read from too. -1 if refused.
int open_directly(int fd) {
  char path[64];
  ::snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  return is_local(fd) ? ::open(path, O_RDONLY | O_DIRECT | O_CLOEXEC) : -1;
}

}  // namespace

DirectFiles::DirectFiles(const std::vector<int>& fds) {
  for (int fd : fds) {
    int direct = open_directly(fd);
    if (direct < 0) continue;
    try {
      files_.push_back(std::make_unique<File>(fd, direct));
    } catch (...) {
      ::close(direct);
      for (const std::unique_ptr<File>& file : files_) ::close(file->direct);
      throw;
    }
  }
}

DirectFiles::~DirectFiles() {
  for (const std::unique_ptr<File>& file : files_) ::close(file->direct);
}

const char* DirectFiles::read(int fd, char* buffer, std::size_t bytes, std::uint64_t offset) {
  auto found = std::lower_bound(files_.begin(), files_.end(), fd,
                                [](const std::unique_ptr<File>& file, int wanted) { return file->fd < wanted; });
  std::size_t before = static_cast<std::size_t>(offset % kBlock);
  std::size_t got = 0;  // from the block that the bytes begin in
  if (found != files_.end() && (*found)->fd == fd && !(*found)->refused.load(std::memory_order_relaxed)) {
    std::size_t blocks = (before + bytes + kBlock - 1) / kBlock * kBlock;
    while (got < before + bytes && got % kBlock == 0) {  // only the end of a file is in the middle of a block
      iovec into{buffer + got, blocks - got};
      ssize_t now = ::preadv((*found)->direct, &into, 1, static_cast<off_t>(offset - before + got));
      if (now < 0 && errno == EINTR) continue;
      if (now < 0) (*found)->refused.store(true, std::memory_order_relaxed);
      if (now <= 0) break;
      got += static_cast<std::size_t>(now);
    }
  }
  // The rest, if there is any: whatever is wrong with it, the other descriptor is the one to say so.
  std::size_t have = std::min(got - std::min(got, before), bytes);
  if (have < bytes) read_at(fd, buffer + before + have, bytes - have, offset + have);
  return buffer + before;
}
#else
DirectFiles::DirectFiles(const std::vector<int>&) {}
DirectFiles::~DirectFiles() = default;
const char* DirectFiles::read(int fd, char* buffer, std::size_t bytes, std::uint64_t offset) {
  read_at(fd, buffer, bytes, offset);
  return buffer;
}
#endif

}  // namespace soup
