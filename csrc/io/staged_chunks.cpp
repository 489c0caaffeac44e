// SPDX-License-Identifier: MIT
#include "staged_chunks.h"

#include <algorithm>

#include "../errors.h"
#include "../sum_table.h"

namespace soup {
namespace {

// What a table takes beside its segments, and is moved by, to be aligned.
constexpr std::size_t kTableOverhead = 128;
// Where slots lie side by side, all of them are as aligned as the first.
constexpr std::size_t kSlotAlignment = 256;

std::size_t align_up(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }

// What a part of a table takes at most: one segment, with rows, in as many tiles as the shortest tiles make of it.
std::size_t table_bound(std::size_t rows, std::size_t sources, std::uint64_t n) {
  std::size_t tiles = static_cast<std::size_t>(n / (2 * kRoundChunks)) + 2;
  return sizeof(SumSegment) + sources * sizeof(SumSource) + rows * sizeof(std::uint64_t) +
         tiles * sizeof(std::uint32_t);
}

// The rows of a piece, those without elements at its ends included.
std::size_t rows_in(const Plan& plan, const Piece& piece) {
  RowRange rows = rows_of(plan, piece.segment);
  std::uint64_t end = piece.begin + piece.n;
  std::size_t first = piece.begin == 0 ? rows.begin : row_at(plan, rows, piece.begin);
  std::size_t after = end == plan.segments[piece.segment].n ? rows.end : row_at(plan, rows, end - 1) + 1;
  return after - first;
}

// The most rows that a granule of a segment can have.
std::size_t rows_in_granule(const Plan& plan, std::size_t segment) {
  RowRange rows = rows_of(plan, segment);
  std::size_t empty = 0;
  for (std::size_t row = rows.begin; row < rows.end; ++row) {
    if (plan.row_ends[row] == row_start(plan, rows, row)) ++empty;
  }
  return empty + std::min<std::size_t>(rows.end - rows.begin - empty, kGranule);
}

// The longest piece from there on that takes at most `room` bytes; without elements where not one granule does.
Piece longest_piece(const Plan& plan, std::size_t segment, std::uint64_t begin, std::size_t room,
                    const SlotLayout& layout) {
  Piece piece{segment, begin, plan.segments[segment].n - begin};
  if (piece_bytes(plan, piece, layout).all() <= room) return piece;
  std::uint64_t fits = 0;
  std::uint64_t granules = (piece.n + kGranule - 1) / kGranule;  // too many
  while (granules - fits > 1) {
    std::uint64_t middle = fits + (granules - fits) / 2;
    piece.n = middle * kGranule;
    (piece_bytes(plan, piece, layout).all() <= room ? fits : granules) = middle;
  }
  piece.n = fits * kGranule;
  return piece;
}

}  // namespace

PieceBytes piece_bytes(const Plan& plan, const Piece& piece, const SlotLayout& layout) {
  const Segment& segment = plan.segments[piece.segment];
  PieceBytes bytes;
  auto region = [&](const Place& place) { return static_cast<std::size_t>(piece.n) * item_size(place.dtype); };
  for (std::size_t k = 0; k < segment.count; ++k) {
    const Place& source = plan.sources[segment.first_source + k];
    if (is_staged(source)) bytes.sources += align_up(region(source) + layout.slack, layout.alignment);
  }
  if (is_staged(segment.dst)) bytes.result = align_up(region(segment.dst), layout.alignment);
  bytes.table = table_bound(rows_in(plan, piece), segment.count, piece.n);
  return bytes;
}

std::size_t staged_minimum(const Plan& plan, const SlotLayout& layout) {
  std::size_t most = 0;
  for (std::size_t s = 0; s < plan.segments.size(); ++s) {
    const Segment& segment = plan.segments[s];
    Piece granule{s, 0, std::min(segment.n, kGranule)};
    PieceBytes bytes = piece_bytes(plan, granule, layout);
    bytes.table = table_bound(rows_in_granule(plan, s), segment.count, granule.n);
    most = std::max(most, bytes.all());
  }
  return align_up(most + kTableOverhead, std::max(layout.alignment, kSlotAlignment));
}

std::uint64_t staged_bytes(const Plan& plan) {
  std::uint64_t bytes = 0;
  for (const Segment& segment : plan.segments) {
    for (std::size_t k = 0; k < segment.count; ++k) {
      const Place& source = plan.sources[segment.first_source + k];
      if (is_staged(source)) bytes += segment.n * item_size(source.dtype);
    }
    if (is_staged(segment.dst)) bytes += segment.n * item_size(segment.dst.dtype);
  }
  return bytes;
}

StagedChunks::StagedChunks(const Plan& plan, std::size_t slot_bytes, const SlotLayout& layout) {
  std::size_t most = slot_bytes - std::min(slot_bytes, kTableOverhead);
  std::size_t room = most;
  auto close = [&] {
    ends_.push_back(pieces_.size());
    room = most;
  };
  auto is_open = [&] { return pieces_.size() > (ends_.empty() ? 0 : ends_.back()); };
  for (std::size_t s = 0; s < plan.segments.size(); ++s) {
    std::uint64_t n = plan.segments[s].n;
    if (n == 0 && is_open()) {  // its rows are in the table nevertheless
      std::size_t rows = rows_in(plan, {s, 0, 0}) * sizeof(std::uint64_t);
      if (rows > room) close();
      if (is_open()) room -= rows;
    }
    for (std::uint64_t begin = 0; begin < n;) {
      Piece piece = longest_piece(plan, s, begin, room, layout);
      bool whole = begin + piece.n == n;
      // The start of a long segment in what is left of a slot would be a read, a copy and a launch for very little.
      bool sliver = !whole && room < most / 4;
      if (is_open() && (piece.n == 0 || sliver)) {
        close();
        continue;
      }
      if (piece.n == 0) throw Error(ErrorKind::kInvalid, "the memory is too small for one chunk of every source");
      pieces_.push_back(piece);
      room -= piece_bytes(plan, piece, layout).all();
      begin += piece.n;
      if (!whole) close();
    }
  }
  if (is_open()) close();
}

}  // namespace soup
