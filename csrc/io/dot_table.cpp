// SPDX-License-Identifier: MIT
#include "dot_table.h"

#include <algorithm>
#include <cstdint>
#include <string>

#include "../errors.h"

namespace soup {
namespace {

std::uint64_t aligned(std::uint64_t bytes) { return (bytes + 15) / 16 * 16; }

std::uint64_t checked(std::uint64_t count, std::uint64_t limit, const char* what) {
  if (count <= limit) return count;
  throw Error(ErrorKind::kInvalid, "dots on a device: found " + std::to_string(count) + " " + what +
                                       ", expected at most " + std::to_string(limit));
}

std::uint32_t narrow(std::uint64_t count, const char* what) {
  return static_cast<std::uint32_t>(checked(count, 0xFFFFFFFFu, what));
}

std::uint8_t access_of(std::uint64_t address, std::uint8_t dtype) {
  std::size_t size = item_size(dtype);
  if (address % (size == 1 ? 8 : 16) == 0) return kDotWide;
  return address % size == 0 ? kDotElements : kDotBytes;
}

// Whether the group that starts at `first`, of `members` sources, can be taken all at once.
bool is_together(const DotSource* first, std::uint64_t members) {
  auto alike = [first](const DotSource& source) { return source.dtype == first->dtype && source.access == kDotWide; };
  return members == kDotWarpGroup && std::all_of(first, first + members, alike);
}

}  // namespace

DotTableShape dot_table_shape(const DotPlan& plan) {
  DotTableShape shape{};
  shape.segments = narrow(plan.segments.size(), "segments");
  shape.count = narrow(plan.count, "sources");
  shape.tiles = narrow(plan.tiles, "tiles");
  shape.groups = narrow((plan.count + kDotWarpGroup - 1) / kDotWarpGroup, "groups");
  (void)checked(std::uint64_t{shape.tiles} * shape.groups, (std::uint64_t{1} << 34) - 8, "warps");
  shape.segments_at = 0;
  shape.sources_at = aligned(plan.segments.size() * sizeof(DotSegment));
  shape.tiles_at = shape.sources_at + aligned(plan.at.size() * sizeof(DotSource));
  shape.bytes = shape.tiles_at + aligned(plan.tiles * sizeof(std::uint32_t));
  return shape;
}

void pack_dot_table(const DotPlan& plan, const DotTableShape& shape, void* table) {
  char* bytes = static_cast<char*>(table);
  auto* segments = reinterpret_cast<DotSegment*>(bytes + shape.segments_at);
  auto* sources = reinterpret_cast<DotSource*>(bytes + shape.sources_at);
  auto* tiles = reinterpret_cast<std::uint32_t*>(bytes + shape.tiles_at);
  for (std::size_t s = 0; s < plan.segments.size(); ++s) {
    const DotPlan::Segment& segment = plan.segments[s];
    DotSegment& packed = segments[s];
    packed = DotSegment{};
    packed.gradient = segment.gradient;
    packed.n = segment.n;
    packed.first_tile = static_cast<std::uint32_t>(segment.first_tile);
    packed.tiles = static_cast<std::uint32_t>(DotPlan::tiles_of(segment.n));
    packed.dtype = segment.dtype;
    packed.access = access_of(segment.gradient, segment.dtype);
    std::fill_n(tiles + packed.first_tile, packed.tiles, static_cast<std::uint32_t>(s));
    DotSource* first = sources + s * plan.count;
    for (std::size_t k = 0; k < plan.count; ++k) {
      std::size_t cell = s * plan.count + k;
      first[k] = DotSource{};
      first[k].at = plan.at[cell];
      first[k].dtype = plan.dtypes[cell];
      first[k].access = access_of(plan.at[cell], plan.dtypes[cell]);
    }
    for (std::size_t k = 0; k < plan.count; k += kDotWarpGroup) {
      first[k].together = is_together(first + k, std::min<std::size_t>(kDotWarpGroup, plan.count - k)) ? 1 : 0;
    }
  }
}

}  // namespace soup
