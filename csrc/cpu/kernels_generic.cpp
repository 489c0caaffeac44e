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
#include "exp_log.h"
#include "logits_impl.h"
// clang-format on

void score_any_rows(const LogitArgs& args, const LogitRange& range) {
  bool wide = args.dtype == kF64 || (args.base != nullptr && args.base_dtype == kF64);
  (wide ? score_rows<LanesF64, LanesF64> : score_rows<LanesF32, LanesF64>)(args, range);
}

}  // namespace

const KernelTable kGenericKernels = {"generic", weighted_sum, score_any_rows};

}  // namespace soup
