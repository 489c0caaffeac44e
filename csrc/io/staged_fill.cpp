// SPDX-License-Identifier: MIT
#include "staged_fill.h"

#include <algorithm>
#include <cstring>

#include "../errors.h"
#include "positional.h"

namespace soup {
namespace {

// The longest access of a kernel.
constexpr std::size_t kVector = 16;

std::size_t align_up(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }

// Bytes before a source with which it becomes aligned where its result does.
std::size_t pad_for(std::uint64_t result, std::size_t result_size, std::size_t source_size) {
  std::size_t head = static_cast<std::size_t>(-result % kVector);
  if (head % result_size != 0) return 0;  // it never does
  return static_cast<std::size_t>(-(head / result_size * source_size) % kVector);
}

// Bytes whose source and result both are on the host have no business on the device.
bool only_host(const Plan& plan, const Segment& segment) {
  return segment.dst.dtype == kRaw && is_staged(segment.dst) && is_staged(plan.sources[segment.first_source]);
}

std::size_t bytes_of(const Piece& piece, const Place& place) {
  return static_cast<std::size_t>(piece.n) * item_size(place.dtype);
}

Place place_of(const Piece& piece, const Place& place) {
  return {place.at + piece.begin * item_size(place.dtype), place.fd, place.dtype};
}

}  // namespace

bool SlotFiller::fill(const Piece* begin, const Piece* end, char* slot, std::size_t slot_bytes, const char* device_slot,
                      FilledChunk& chunk, const std::atomic<bool>& stopped) {
  chunk = FilledChunk();
  sums_ = Plan();
  slot_ = slot;
  auto on_device = reinterpret_cast<std::uint64_t>(device_slot);
  for (const Piece* piece = begin; piece < end; ++piece) {
    const Segment& segment = plan_.segments[piece->segment];
    if (!is_staged(segment.dst) || only_host(plan_, segment)) continue;
    chunk.results.push_back({place_of(*piece, segment.dst), chunk.returned, bytes_of(*piece, segment.dst)});
    chunk.returned += align_up(bytes_of(*piece, segment.dst), layout_.alignment);
  }
  std::size_t at = chunk.returned;
  std::size_t result = 0;
  for (const Piece* piece = begin; piece < end; ++piece) {
    const Segment& segment = plan_.segments[piece->segment];
    chunk.moved += piece->n * cost_of(plan_, segment).moved;
    if (only_host(plan_, segment)) {
      if (!read_sources(*piece, 0, 0, at, stopped)) return false;
      chunk.results.push_back(
          {place_of(*piece, segment.dst), static_cast<std::size_t>(sources_[0]), bytes_of(*piece, segment.dst)});
      continue;
    }
    Place dst = place_of(*piece, segment.dst);
    std::uint64_t to = is_staged(dst) ? on_device + chunk.results[result++].at : dst.at;
    if (!read_sources(*piece, to, on_device, at, stopped)) return false;
    add_sum(*piece, to, chunk);
  }
  add_table(at, slot_bytes, chunk);
  return true;
}

// The sources' addresses on the device go to sources_, where the slot there begins at `on_device`. From `at` on the
// slot is free.
bool SlotFiller::read_sources(const Piece& piece, std::uint64_t result, std::uint64_t on_device, std::size_t& at,
                              const std::atomic<bool>& stopped) {
  const Segment& segment = plan_.segments[piece.segment];
  sources_.clear();
  for (std::size_t k = 0; k < segment.count; ++k) {
    if (stopped.load(std::memory_order_relaxed)) return false;
    const Place& whole = plan_.sources[segment.first_source + k];
    Place source = place_of(piece, whole);
    if (!is_staged(source)) {
      sources_.push_back(source.at);
      continue;
    }
    std::size_t bytes = bytes_of(piece, source);
    std::size_t pad = pad_for(result, item_size(segment.dst.dtype), item_size(source.dtype));
    sources_.push_back(on_device + read(source, bytes, at + pad, at));
    at += align_up(bytes + layout_.slack, layout_.alignment);
  }
  return true;
}

// Where in the slot the bytes are: at `into`, or, read past the page cache, wherever they fall in what follows
// `region`.
std::size_t SlotFiller::read(const Place& source, std::size_t bytes, std::size_t into, std::size_t region) {
  if (source.fd == kOnHost) {
    std::memcpy(slot_ + into, reinterpret_cast<const char*>(source.at), bytes);
    return into;
  }
  bool cached = direct_ == nullptr || mapped_->find(source.fd, source.at, bytes) != nullptr;
  if (!cached) return static_cast<std::size_t>(direct_->read(source.fd, slot_ + region, bytes, source.at) - slot_);
  read_at(source.fd, slot_ + into, bytes, source.at);
  return into;
}

// A segment of the table, with the plan's rows: those between two segments have no elements and go to the first.
void SlotFiller::add_sum(const Piece& piece, std::uint64_t result, FilledChunk& chunk) {
  const Segment& segment = plan_.segments[piece.segment];
  RowRange rows = rows_of(plan_, piece.segment);
  std::size_t row = row_at(plan_, rows, piece.begin);
  if (sums_.segments.empty()) chunk.first_row = row;
  sums_.row_ends.resize(row - chunk.first_row, sums_.segments.empty() ? 0 : sums_.segments.back().n);
  Segment sum = segment;
  sum.n = piece.n;
  sum.first_source = sums_.sources.size();
  sum.dst = {result, kInMemory, segment.dst.dtype};
  sum.first_row = sums_.row_ends.size();
  std::uint64_t end = piece.begin + piece.n;
  for (; row < rows.end && row_start(plan_, rows, row) < end; ++row) {
    sums_.row_ends.push_back(std::min(plan_.row_ends[row], end) - piece.begin);
  }
  for (std::size_t k = 0; k < segment.count; ++k) {
    std::size_t source = segment.first_source + k;
    sums_.sources.push_back({sources_[k], kInMemory, plan_.sources[source].dtype});
    sums_.weights.push_back(plan_.weights[source]);
    sums_.weights_f32.push_back(plan_.weights_f32[source]);
  }
  sums_.segments.push_back(sum);
}

void SlotFiller::add_table(std::size_t at, std::size_t slot_bytes, FilledChunk& chunk) const {
  chunk.sums = !sums_.segments.empty();
  if (!chunk.sums) return;
  chunk.table = align_up(at, kVector);
  chunk.shape = sum_table_shape(sums_);
  chunk.sent = chunk.table + static_cast<std::size_t>(chunk.shape.bytes) - chunk.returned;
  if (chunk.returned + chunk.sent > slot_bytes) throw Error(ErrorKind::kInvalid, "a chunk is larger than its slot");
  pack_sum_table(sums_, chunk.shape, slot_ + chunk.table);
}

}  // namespace soup
