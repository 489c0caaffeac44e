// SPDX-License-Identifier: MIT
// Source files mapped into memory: what the page cache holds already is read where it lies. Copying it first, as read
// does, takes more time than everything else that is done with it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "bus_guard.h"
#include "plan.h"

namespace soup {

class MappedFiles {
 public:
  // Maps the files that the plan reads, as far as that is possible and of use; the others find() does not know.
  // Without read_ahead, using what is there does not make the kernel read what follows it.
  explicit MappedFiles(const Plan& plan, bool read_ahead = true) : MappedFiles(source_files(plan), read_ahead) {}
  // The same for files by ascending descriptor.
  explicit MappedFiles(const std::vector<int>& fds, bool read_ahead = true);
  ~MappedFiles();
  MappedFiles(const MappedFiles&) = delete;
  MappedFiles& operator=(const MappedFiles&) = delete;

  // Where these bytes of a file can be read without waiting for the disk; nullptr where they must be read into a
  // buffer: not mapped, not in the page cache. Files are best gone through in ascending order: what lies far behind is
  // let go, so that the process does not seem to hold whole files in memory.
  const char* find(int fd, std::uint64_t offset, std::size_t bytes);

  // How much of the files the page cache does not hold, by samples: 0 to 1. 0 where that is not known.
  double absent_share() const;

  // Throws kShortRead if the file has become shorter than what find() has given out. To be asked after the bytes were
  // used: until then they may have been zeros.
  void check(int fd, std::uint64_t offset) const;

 private:
  struct Mapping {
    Mapping(int file, char* at, std::size_t bytes) : fd(file), begin(at), size(bytes), guard(at, bytes) {}
    int fd;
    char* begin;
    std::size_t size;
    BusGuard guard;
    std::atomic<std::size_t> let_go{0};  // everything before this offset
  };

  Mapping* mapping_of(int fd) const;
  void let_go_behind(Mapping& mapping, std::size_t offset) const;

  std::vector<std::unique_ptr<Mapping>> mappings_;  // by ascending fd
  std::size_t window_ = 0;
};

}  // namespace soup
