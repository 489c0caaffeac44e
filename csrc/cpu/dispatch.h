// SPDX-License-Identifier: MIT
// Which ISA units were built, which of them this processor runs, and which one is used.
#pragma once

#include <string>
#include <vector>

#include "../kernels.h"

namespace soup {

// Built and runnable here, best first; "generic" is always last.
std::vector<std::string> available_isas();

// The table of that name; "auto" is the best one. An unknown or absent name is an Error(kIsa), never a fallback.
const KernelTable& kernels_for(const std::string& isa);

}  // namespace soup
