// SPDX-License-Identifier: MIT
// The kernels compiled for generic. Flags are in CMakeLists.txt; no std:: header may be included here.

#include "../element.h"
#include "../kernels.h"
#include "../logit_row.h"
#include "../scalar.h"
#include "tables.h"

namespace soup {
namespace {

// clang-format off: the order matters
#include "vec_generic.h"
#include "kernels_impl.h"
#include "logits_impl.h"
#include "dots_impl.h"
// clang-format on

void score_any_rows(const LogitArgs& args, size_t first_row, size_t end_row) {
  bool wide = args.dtype == kF64 || (args.base != nullptr && args.base_dtype == kF64);
  (wide ? score_rows<LanesF64, LanesF64> : score_rows<LanesF32, LanesF64>)(args, first_row, end_row);
}

}  // namespace

const KernelTable kGenericKernels = {"generic", weighted_sum, score_any_rows, dot_tile};

}  // namespace soup
