// SPDX-License-Identifier: MIT
#include "source_files.h"

#include "../errors.h"
#include "positional.h"

namespace soup {
namespace {

std::size_t align_up(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }

}  // namespace

SourceFiles::SourceFiles(const std::vector<int>& fds, bool direct) : mapped_(fds, !direct) {
  if (direct) direct_ = std::make_unique<DirectFiles>(fds);
}

const char* SourceFiles::fetch(const Place& source, std::uint64_t begin, std::size_t bytes, char*& room) {
  if (source.fd < 0) return reinterpret_cast<const char*>(source.at) + begin;
  const char* found = mapped_.find(source.fd, source.at + begin, bytes);
  if (found != nullptr) return found;
  if (direct_) {
    found = direct_->read(source.fd, room, bytes, source.at + begin);
    room += align_up(bytes, kPastCache.alignment) + DirectFiles::kBlock;
  } else {
    read_at(source.fd, room, bytes, source.at + begin);
    found = room;
    room += align_up(bytes, kThroughCache.alignment);
  }
  return found;
}

PieceBuffer::PieceBuffer(std::size_t bytes, PieceLayout layout)
    : at_(static_cast<char*>(std::aligned_alloc(layout.alignment, align_up(bytes, layout.alignment))), &std::free) {
  if (!at_) throw Error(ErrorKind::kMemory, "no memory for the buffers");
}

}  // namespace soup
