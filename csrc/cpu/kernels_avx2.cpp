// SPDX-License-Identifier: MIT
// The kernels compiled for avx2. Flags are in CMakeLists.txt; no std:: header may be included here.
#include <immintrin.h>

#include "../element.h"
#include "../kernels.h"
#include "../logit_row.h"
#include "../scalar.h"
#include "tables.h"

namespace soup {
namespace {

// clang-format off: the order matters
#include "vec_x86.h"

#include "vec_avx2.h"
#include "kernels_impl.h"
#include "logits_impl.h"
#include "dots_impl.h"
// clang-format on

}  // namespace

const KernelTable kAvx2Kernels = {"avx2", weighted_sum, score_rows<LanesF32, LanesF64>, dot_tile};

}  // namespace soup
