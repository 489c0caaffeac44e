// SPDX-License-Identifier: MIT
// One table of kernels per ISA unit; which of them exist is CMake's decision (SOUP_HAVE_*).
#pragma once

#include "../kernels.h"

namespace soup {

extern const KernelTable kGenericKernels;
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;
extern const KernelTable kNeonKernels;

}  // namespace soup
