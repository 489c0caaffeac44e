// SPDX-License-Identifier: MIT
// Pieces of the sources of a run: where they lie, in memory or in the page cache, else read into a buffer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "direct.h"
#include "mapped.h"
#include "plan.h"

namespace soup {

// How pieces lie in a buffer: each begins at a multiple of `alignment` and takes at most `slack` bytes beside its own.
struct PieceLayout {
  std::size_t alignment;
  std::size_t slack;
};
constexpr PieceLayout kThroughCache{64, 64};
constexpr PieceLayout kPastCache{DirectFiles::kBlock, DirectFiles::kSlack};

class SourceFiles {
 public:
  // Files by ascending descriptor. With `direct`, what the page cache does not hold is read past it; buffers then have
  // to be laid out as kPastCache says.
  SourceFiles(const std::vector<int>& fds, bool direct);

  // Where bytes [begin, begin + bytes) of a source are. Those that have to be read are put at `room`, which then is
  // behind them.
  const char* fetch(const Place& source, std::uint64_t begin, std::size_t bytes, char*& room);

  // To be asked after the bytes from `begin` on were used: throws where they may have been zeros, as the file was cut
  // short meanwhile.
  void check(const Place& source, std::uint64_t begin) const {
    if (source.fd >= 0) mapped_.check(source.fd, source.at + begin);
  }

 private:
  MappedFiles mapped_;
  std::unique_ptr<DirectFiles> direct_;
};

// Memory for pieces. Throws where there is none.
class PieceBuffer {
 public:
  PieceBuffer(std::size_t bytes, PieceLayout layout);
  char* begin() const { return at_.get(); }

 private:
  std::unique_ptr<char, decltype(&std::free)> at_;
};

}  // namespace soup
