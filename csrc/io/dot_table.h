// SPDX-License-Identifier: MIT
// Packs a DotPlan into the table of ../dot_table.h.
#pragma once

#include "../dot_plan.h"
#include "../dot_table.h"

namespace soup {

// The shape alone: how large the table is. Throws Error(kInvalid) for one of more than 2^32 - 1 segments, sources,
// tiles, or 2^34 - 8 warps: 2^31 - 1 blocks.
DotTableShape dot_table_shape(const DotPlan& plan);

// Writes shape.bytes bytes; `table` must be aligned to 16. Addresses in the plan are those that the device uses; none
// is looked at.
void pack_dot_table(const DotPlan& plan, const DotTableShape& shape, void* table);

}  // namespace soup
