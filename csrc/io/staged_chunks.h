// SPDX-License-Identifier: MIT
// A plan cut into chunks that fit a slot of the ring in staged.h: each a few pieces of segments, the small ones
// together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "plan.h"

namespace soup {

// Elements [begin, begin + n) of a segment. `begin` is a multiple of kGranule.
struct Piece {
  std::size_t segment;
  std::uint64_t begin, n;
};

// What is not in the device's memory passes through a slot.
inline bool is_staged(const Place& place) { return place.fd != kInMemory; }

// How bytes lie in a slot. Each source has `slack` bytes beyond its own, to begin where it suits the device or the
// disk.
struct SlotLayout {
  std::size_t alignment = 64;  // of the regions in a slot
  std::size_t slack = 16;
};

// The bytes of the regions of a slot that a piece takes.
struct PieceBytes {
  std::size_t sources = 0, result = 0, table = 0;
  std::size_t all() const { return sources + result + table; }
};

PieceBytes piece_bytes(const Plan& plan, const Piece& piece, const SlotLayout& layout);

// The smallest slot that a plan can run with, a multiple of every alignment.
std::size_t staged_minimum(const Plan& plan, const SlotLayout& layout);

// Bytes that pass through slots.
std::uint64_t staged_bytes(const Plan& plan);

class StagedChunks {
 public:
  // Throws kInvalid for slots smaller than staged_minimum.
  StagedChunks(const Plan& plan, std::size_t slot_bytes, const SlotLayout& layout);

  std::size_t count() const { return ends_.size(); }
  const Piece* begin(std::size_t chunk) const { return pieces_.data() + (chunk == 0 ? 0 : ends_[chunk - 1]); }
  const Piece* end(std::size_t chunk) const { return pieces_.data() + ends_[chunk]; }

 private:
  std::vector<Piece> pieces_;
  std::vector<std::size_t> ends_;  // of the chunks, in pieces_
};

}  // namespace soup
