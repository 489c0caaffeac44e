// SPDX-License-Identifier: MIT
#include "sum_table.h"

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "../errors.h"
#include "../scalar.h"

namespace soup {
namespace {

std::uint64_t aligned(std::uint64_t bytes) { return (bytes + 15) / 16 * 16; }

std::uint32_t narrow(std::uint64_t count, const char* what) {
  if (count > std::numeric_limits<std::uint32_t>::max()) {
    throw Error(ErrorKind::kInvalid, std::string("a plan for a device has ") + std::to_string(count) + " " + what +
                                         ", expected at most 4294967295");
  }
  return static_cast<std::uint32_t>(count);
}

bool is_halved(const Plan& plan, const Segment& segment) {
  std::uint64_t chunk = chunk_elements(segment.accumulator, segment.dst.dtype, false);
  auto begin = plan.sources.begin() + static_cast<std::ptrdiff_t>(segment.first_source);
  return segment.dst.dtype != kRaw &&
         std::any_of(begin, begin + static_cast<std::ptrdiff_t>(segment.count),
                     [&](const Place& source) { return chunk * item_size(source.dtype) > 16; });
}

std::uint64_t chunk_of(const Plan& plan, const Segment& segment) {
  return chunk_elements(segment.accumulator, segment.dst.dtype, is_halved(plan, segment));
}

std::uint64_t most_chunks(const Plan& plan, const Segment& segment) {
  std::uint64_t chunk = chunk_of(plan, segment);
  return segment.n == 0 ? 0 : (segment.n + chunk - 1) / chunk + 1;  // the shift may make it one more
}

std::uint64_t tiles_of(std::uint64_t chunks, std::uint32_t rounds) {
  std::uint64_t tile = std::uint64_t{kRoundChunks} * rounds;
  return (chunks + tile - 1) / tile;
}

std::uint32_t kind_of(const Plan& plan, const Segment& segment) {
  return sum_kind(segment.accumulator, segment.dst.dtype, is_halved(plan, segment));
}

// In the accumulator's type, correctly rounded.
double reciprocal_of(const Segment& segment) {
  if (segment.accumulator == kAccF64) return 1.0 / segment.divisor;
  return 1.0f / static_cast<float>(segment.divisor);
}

// The power of two up to 16, and up to a chunk's bytes, that an address is a multiple of.
std::uint8_t width_of(std::uint64_t address, std::uint64_t chunk_bytes) {
  std::uint64_t width = std::min<std::uint64_t>(16, chunk_bytes);
  while (address % width != 0) width /= 2;
  return static_cast<std::uint8_t>(width);
}

// Bytes that an element's memory may be accessed at once with, were chunks to start `shift` elements before `place`.
std::uint64_t aligned_bytes(const Place& place, std::uint64_t chunk, std::uint64_t shift) {
  std::uint64_t size = item_size(place.dtype);
  bool wide = width_of(place.at - shift * size, chunk * size) == std::min<std::uint64_t>(16, chunk * size);
  return wide ? size : 0;
}

std::uint8_t best_shift(const Plan& plan, const Segment& segment, std::uint64_t chunk) {
  std::uint64_t best = 0;
  std::uint64_t most = 0;
  for (std::uint64_t shift = 0; shift < chunk; ++shift) {
    std::uint64_t bytes = aligned_bytes(segment.dst, chunk, shift);
    for (std::size_t k = 0; k < segment.count; ++k) {
      bytes += aligned_bytes(plan.sources[segment.first_source + k], chunk, shift);
    }
    if (bytes > most) {
      most = bytes;
      best = shift;
    }
  }
  return static_cast<std::uint8_t>(best);
}

SumSegment packed(const Plan& plan, std::size_t s, SumSource* sources) {
  const Segment& segment = plan.segments[s];
  std::uint64_t chunk = chunk_of(plan, segment);
  std::uint64_t shift = best_shift(plan, segment, chunk);
  std::uint64_t size = item_size(segment.dst.dtype);
  RowRange rows = rows_of(plan, s);
  SumSegment result{};
  result.origin = segment.dst.at - shift * size;
  result.n = segment.n;
  result.chunks = static_cast<std::uint32_t>(segment.n == 0 ? 0 : (segment.n + shift + chunk - 1) / chunk);
  result.divisor = segment.divisor;
  result.reciprocal = reciprocal_of(segment);
  result.once = divides_once(segment.divisor) ? 1 : 0;
  result.least = least_quotient(segment.accumulator == kAccF64, result.once != 0);
  result.first_source = static_cast<std::uint32_t>(segment.first_source);
  result.count = static_cast<std::uint32_t>(segment.count);
  result.first_row = static_cast<std::uint32_t>(rows.begin);
  result.rows = static_cast<std::uint32_t>(rows.end - rows.begin);
  result.dst_dtype = segment.dst.dtype;
  result.accumulator = segment.accumulator;
  result.width = width_of(result.origin, chunk * size);
  result.shift = static_cast<std::uint8_t>(shift);
  result.chunk = static_cast<std::uint8_t>(chunk);
  bool quick = has_quotients(segment.divisor) && result.width == chunk * size;
  for (std::size_t k = segment.first_source; k < segment.first_source + segment.count; ++k) {
    const Place& place = plan.sources[k];
    std::uint64_t bytes = chunk * item_size(place.dtype);
    SumSource& source = sources[k];
    source = SumSource{};
    source.origin = place.at - shift * item_size(place.dtype);
    source.weight_f64 = plan.weights[k];
    source.weight_f32 = plan.weights_f32[k];
    source.dtype = place.dtype;
    source.width = width_of(source.origin, bytes);
    quick = quick && source.width == bytes;
  }
  if (quick) {
    result.quick_begin = shift == 0 ? 0 : 1;
    result.quick_end = static_cast<std::uint32_t>((segment.n + shift) / chunk);
  }
  return result;
}

void require_memory(const Place& place) {
  if (place.fd == kInMemory) return;
  throw Error(ErrorKind::kInvalid, "a plan for a device: found a place outside its memory, expected none");
}

}  // namespace

SumTableShape sum_table_shape(const Plan& plan, std::uint64_t many_tiles) {
  for (const Segment& segment : plan.segments) require_memory(segment.dst);
  for (const Place& place : plan.sources) require_memory(place);
  std::uint64_t tiles = 0;
  for (const Segment& segment : plan.segments) tiles += tiles_of(most_chunks(plan, segment), 1);
  SumTableShape shape{};
  shape.rounds = narrow((tiles + many_tiles - 1) / many_tiles + (tiles == 0 ? 1 : 0), "rounds");
  std::uint64_t ends[kSumKinds] = {};
  for (const Segment& segment : plan.segments) {
    std::uint64_t segment_tiles = tiles_of(most_chunks(plan, segment), shape.rounds);
    // The kernel numbers all chunks of whole tiles, beyond the segment's last one, in 32 bits.
    (void)narrow(segment_tiles * kRoundChunks * shape.rounds, "chunks in a segment");
    ends[kind_of(plan, segment)] += segment_tiles;
  }
  tiles = 0;
  for (std::uint32_t kind = 0; kind < kSumKinds; ++kind) {
    tiles += ends[kind];
    shape.kind_ends[kind] = narrow(tiles, "tiles");
  }
  shape.segments = narrow(plan.segments.size(), "segments");
  shape.rows = narrow(plan.row_ends.size(), "rows");
  shape.tiles = narrow(tiles, "tiles");
  (void)narrow(plan.sources.size(), "sources");
  shape.segments_at = 0;
  shape.sources_at = aligned(plan.segments.size() * sizeof(SumSegment));
  shape.row_ends_at = shape.sources_at + aligned(plan.sources.size() * sizeof(SumSource));
  shape.tiles_at = shape.row_ends_at + aligned(plan.row_ends.size() * sizeof(std::uint64_t));
  shape.bytes = shape.tiles_at + aligned(tiles * sizeof(std::uint32_t));
  return shape;
}

void pack_sum_table(const Plan& plan, const SumTableShape& shape, void* table) {
  char* bytes = static_cast<char*>(table);
  auto* segments = reinterpret_cast<SumSegment*>(bytes + shape.segments_at);
  auto* sources = reinterpret_cast<SumSource*>(bytes + shape.sources_at);
  auto* row_ends = reinterpret_cast<std::uint64_t*>(bytes + shape.row_ends_at);
  auto* tiles = reinterpret_cast<std::uint32_t*>(bytes + shape.tiles_at);
  std::copy(plan.row_ends.begin(), plan.row_ends.end(), row_ends);
  std::uint32_t next[kSumKinds] = {};
  std::copy(shape.kind_ends, shape.kind_ends + kSumKinds - 1, next + 1);
  for (std::size_t s = 0; s < plan.segments.size(); ++s) {
    segments[s] = packed(plan, s, sources);
    std::uint32_t& tile = next[kind_of(plan, plan.segments[s])];
    segments[s].first_tile = tile;
    std::uint64_t count = tiles_of(most_chunks(plan, plan.segments[s]), shape.rounds);
    for (std::uint64_t i = 0; i < count; ++i) tiles[tile++] = static_cast<std::uint32_t>(s);
  }
}

}  // namespace soup
