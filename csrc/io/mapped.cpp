// SPDX-License-Identifier: MIT
#include "mapped.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "../errors.h"
#if defined(__linux__)
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#ifndef MADV_POPULATE_READ  // since Linux 5.14; older kernels refuse it, and files are read into buffers there
#define MADV_POPULATE_READ 22
#endif
#endif

namespace soup {

#if defined(__linux__)
namespace {

// Mapped pages of all files together that may stay behind the point that is being read.
constexpr std::size_t kAllWindows = 64u << 20;
constexpr std::size_t kLeastWindow = 1u << 20;
// Longest range looked up at once, in pages.
constexpr std::size_t kMostPages = 4096;
// Pages of a file that are looked up to guess how much of it the page cache holds.
constexpr std::size_t kSamples = 64;

const std::size_t page_bytes = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));

// mincore tells the truth only to those who may write to a file; to others every page is there.
bool residency_is_known(int fd, const struct stat& info) {
  if (info.st_uid == ::geteuid() || ::geteuid() == 0) return true;
  char path[64];
  ::snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  return ::access(path, W_OK) == 0;
}

}  // namespace

MappedFiles::MappedFiles(const std::vector<int>& fds, bool read_ahead) {
  for (int fd : fds) {
    struct stat info;
    if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || info.st_size <= 0 || !residency_is_known(fd, info)) {
      continue;
    }
    std::size_t size = static_cast<std::size_t>(info.st_size);
    void* at = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) continue;
    if (!read_ahead) (void)::madvise(at, size, MADV_RANDOM);
    auto mapping = std::make_unique<Mapping>(fd, static_cast<char*>(at), size);
    if (mapping->guard.protects()) {
      mappings_.push_back(std::move(mapping));
    } else {
      mapping.reset();
      ::munmap(at, size);
    }
  }
  if (!mappings_.empty()) window_ = std::max(kAllWindows / mappings_.size(), kLeastWindow) / page_bytes * page_bytes;
}

MappedFiles::~MappedFiles() {
  for (std::unique_ptr<Mapping>& mapping : mappings_) {
    char* begin = mapping->begin;
    std::size_t size = mapping->size;
    mapping.reset();  // the guard first: something else may be mapped there right after
    ::munmap(begin, size);
  }
}

double MappedFiles::absent_share() const {
  double absent = 0;
  double all = 0;
  for (const std::unique_ptr<Mapping>& mapping : mappings_) {
    std::size_t pages = (mapping->size + page_bytes - 1) / page_bytes;
    for (std::size_t i = 0; i < kSamples; ++i) {
      unsigned char present = 1;
      std::size_t page = pages * (2 * i + 1) / (2 * kSamples);  // in the middle of equal parts
      (void)::mincore(mapping->begin + page * page_bytes, 1, &present);
      if ((present & 1) == 0) absent += static_cast<double>(pages);
      all += static_cast<double>(pages);
    }
  }
  return all > 0 ? absent / all : 0.0;
}

const char* MappedFiles::find(int fd, std::uint64_t offset, std::size_t bytes) {
  Mapping* mapping = mapping_of(fd);
  if (mapping == nullptr || bytes > mapping->size || offset > mapping->size - bytes || mapping->guard.lost()) {
    return nullptr;
  }
  std::size_t from = static_cast<std::size_t>(offset) / page_bytes * page_bytes;
  std::size_t length = static_cast<std::size_t>(offset) + bytes - from;
  std::size_t pages = (length + page_bytes - 1) / page_bytes;
  unsigned char present[kMostPages];
  if (pages > kMostPages || ::mincore(mapping->begin + from, length, present) != 0) return nullptr;
  if (!std::all_of(present, present + pages, [](unsigned char page) { return (page & 1) != 0; })) return nullptr;
  // Maps all pages in one go; a page that is gone again, or cannot be read, is an error here and no signal later.
  if (::madvise(mapping->begin + from, length, MADV_POPULATE_READ) != 0) return nullptr;
  let_go_behind(*mapping, from);
  return mapping->begin + offset;
}

// Unmapping a little at a time makes the processors interrupt one another more often than it is worth.
void MappedFiles::let_go_behind(Mapping& mapping, std::size_t offset) const {
  std::size_t before = mapping.let_go.load(std::memory_order_relaxed);
  if (offset < before + 2 * window_) return;
  std::size_t until = offset / window_ * window_ - window_;
  if (!mapping.let_go.compare_exchange_strong(before, until)) return;
  (void)::madvise(mapping.begin + before, until - before, MADV_DONTNEED);
}
#else
MappedFiles::MappedFiles(const std::vector<int>&, bool) {}
MappedFiles::~MappedFiles() = default;
const char* MappedFiles::find(int, std::uint64_t, std::size_t) { return nullptr; }
double MappedFiles::absent_share() const { return 0.0; }
#endif

void MappedFiles::check(int fd, std::uint64_t offset) const {
  const Mapping* mapping = mapping_of(fd);
  if (mapping != nullptr && mapping->guard.lost()) {
    throw Error(ErrorKind::kShortRead, "file was cut short while it was read", fd, offset, 0);
  }
}

MappedFiles::Mapping* MappedFiles::mapping_of(int fd) const {
  auto found =
      std::lower_bound(mappings_.begin(), mappings_.end(), fd,
                       [](const std::unique_ptr<Mapping>& mapping, int wanted) { return mapping->fd < wanted; });
  return found != mappings_.end() && (*found)->fd == fd ? found->get() : nullptr;
}

}  // namespace soup
