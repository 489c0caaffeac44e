// SPDX-License-Identifier: MIT
// Packs a plan whose places are all in memory into the table of sum_table.h.
#pragma once

#include "../sum_table.h"
#include "plan.h"

namespace soup {

// More tiles than this only make the table longer: a tile then gets more rounds.
constexpr std::uint64_t kManyTiles = 1 << 16;

// The shape alone: how large the table is. Throws Error(kInvalid) for a plan that reads or writes files, or one with
// more than 2^32 - 1 segments, sources, rows or tiles.
SumTableShape sum_table_shape(const Plan& plan, std::uint64_t many_tiles = kManyTiles);

// Writes shape.bytes bytes; `table` must be aligned to 16. Addresses in the plan are those that the device uses; none
// is looked at.
void pack_sum_table(const Plan& plan, const SumTableShape& shape, void* table);

}  // namespace soup
