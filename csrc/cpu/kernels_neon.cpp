// SPDX-License-Identifier: MIT
// The kernels compiled for neon. Flags are in CMakeLists.txt; no std:: header may be included here.
#include <arm_neon.h>

#include "../element.h"
#include "../kernels.h"
#include "../logit_row.h"
#include "../scalar.h"
#include "tables.h"

namespace soup {
namespace {

// clang-format off: the order matters
#include "vec_neon.h"
#include "kernels_impl.h"
#include "logits_impl.h"
#include "dots_impl.h"
// clang-format on

}  // namespace

const KernelTable kNeonKernels = {"neon", weighted_sum, score_rows<LanesF32, LanesF64>, dot_tile};

}  // namespace soup
