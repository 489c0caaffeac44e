// SPDX-License-Identifier: MIT
// What marks a function that the host and a GPU compile alike. Force-inlined: no unit can end up running another unit's
// instructions.
#pragma once

#if defined(__CUDACC__)
#define SOUP_HD __host__ __device__ __forceinline__
#else
#define SOUP_HD inline __attribute__((always_inline))
#endif
