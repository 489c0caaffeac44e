// SPDX-License-Identifier: MIT
// The kernels compiled for generic. Flags are in CMakeLists.txt; no std:: header may be included here.

#include "../kernels.h"
#include "../scalar.h"
#include "tables.h"

namespace soup {
namespace {

// clang-format off: the order matters
#include "element.h"
#include "vec_generic.h"
#include "kernels_impl.h"
// clang-format on

}  // namespace

const KernelTable kGenericKernels = {"generic", weighted_sum};

}  // namespace soup
