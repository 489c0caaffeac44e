// SPDX-License-Identifier: MIT
// Source files read past the page cache: a file that is read once gains nothing from a copy there, and making room for
// one takes longer than a fast disk does. The kernel keeps such reads up to date with what others write.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "plan.h"

namespace soup {

class DirectFiles {
 public:
  // Reads begin and end at multiples of this, in the file and in memory.
  static constexpr std::size_t kBlock = 4096;
  // What a buffer needs beyond the bytes that are read into it.
  static constexpr std::size_t kSlack = 2 * kBlock;

  // Opens the files that the plan reads once more, as far as they can be read directly; where they cannot, read() goes
  // through the page cache.
  explicit DirectFiles(const Plan& plan) : DirectFiles(source_files(plan)) {}
  // The same for files by ascending descriptor.
  explicit DirectFiles(const std::vector<int>& fds);
  ~DirectFiles();
  DirectFiles(const DirectFiles&) = delete;
  DirectFiles& operator=(const DirectFiles&) = delete;

  // Reads these bytes of a file into the buffer, which starts at a multiple of kBlock and has bytes + kSlack bytes, and
  // returns where in it they are. Throws as read_at does.
  const char* read(int fd, char* buffer, std::size_t bytes, std::uint64_t offset);

 private:
  struct File {
    File(int given, int opened) : fd(given), direct(opened) {}
    int fd;
    int direct;
    std::atomic<bool> refused{false};  // by the file system, after it has opened the file
  };

  std::vector<std::unique_ptr<File>> files_;  // by ascending fd
};

}  // namespace soup
