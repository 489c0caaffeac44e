// SPDX-License-Identifier: MIT
// Runs CUDA kernels on the host, to test what they compute: a host compiler compiles the same sources with this header
// in the place of cuda_runtime.h (csrc/cuda/launch.h does that). Blocks run one after another, in a shuffled order; the
// lanes of a block are fibers that take turns, in an order shuffled anew, whenever one waits for others. So a kernel
// without a barrier that it needs is wrong here as well, and a deadlock is a message.
//
// -DSOUP_EMULATE_THREADS makes each lane a thread: for ThreadSanitizer, which sees races that no order shows.
// Negative controls: with SOUP_EMULATE_WITHOUT=barriers in the environment __syncthreads and __syncwarp do nothing,
// with SOUP_EMULATE_WITHOUT=shuffles every lane is left with its own value. A test that passes all the same does not
// test what it seems to.
//
// Not emulated: time, limits of registers and shared memory, the memory model between blocks, extern __shared__.
// The runtime (streams, events, copies) is in emulate_runtime.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "emulate_block.h"
#include "emulate_runtime.h"

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// Blocks run one after another.
#define __shared__ static
#define __constant__ static const

#define threadIdx (::emulate::lane().thread)
#define blockIdx (::emulate::lane().block->index)
#define blockDim (::emulate::lane().block->size)
#define gridDim (::emulate::lane().block->grid)
constexpr int warpSize = 32;

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline double2 make_double2(double x, double y) { return {x, y}; }

// Loads and stores with a hint for the caches.
template <class T>
T __ldcs(const T* p) {
  return *p;
}
// From the cache that all multiprocessors share: of what others change meanwhile, the old value or the new one.
template <class T>
T __ldcg(const T* p) {
  T value;
  __atomic_load(p, &value, __ATOMIC_RELAXED);
  return value;
}
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T value) {
  *p = value;
}
template <class T>
void __stcg(T* p, T value) {
  *p = value;
}

// Waiting for others.
static inline void __syncthreads() { emulate::sync_block(0); }
static inline int __syncthreads_count(int predicate) { return emulate::sync_block(predicate != 0 ? 1 : 0); }
static inline int __syncthreads_or(int predicate) { return __syncthreads_count(predicate) > 0 ? 1 : 0; }
static inline int __syncthreads_and(int predicate) { return __syncthreads_count(predicate == 0) == 0 ? 1 : 0; }
static inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) { emulate::sync_warp(mask); }

// The lane's own number in its segment of `width` lanes tells whom it asks.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
  int own = emulate::lane().in_warp();
  return emulate::exchange(mask, value, (own & ~(width - 1)) + (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize) {
  int own = emulate::lane().in_warp();
  int source = own ^ bits;
  return emulate::exchange(mask, value, source < (own & ~(width - 1)) + width ? source : own);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  int own = emulate::lane().in_warp();
  int source = own + static_cast<int>(delta);
  return emulate::exchange(mask, value, source < (own & ~(width - 1)) + width ? source : own);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  int own = emulate::lane().in_warp();
  int source = own - static_cast<int>(delta);
  return emulate::exchange(mask, value, source >= (own & ~(width - 1)) ? source : own);
}
static inline unsigned __ballot_sync(unsigned mask, int predicate) { return emulate::ballot(mask, predicate != 0); }
static inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0 ? 1 : 0; }
static inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate == 0) == 0 ? 1 : 0; }
static inline unsigned __activemask() { return 0xFFFFFFFFu; }

// The integer reductions of a warp (sm_80 and later).
template <class Combine>
unsigned emulated_reduction(unsigned mask, unsigned value, Combine combine) {
  unsigned result = value;
  bool first = true;
  for (int source = 0; source < warpSize; ++source) {
    if ((mask >> source & 1u) == 0) continue;
    unsigned other = __shfl_sync(mask, value, source);
    result = first ? other : combine(result, other);
    first = false;
  }
  return result;
}
static inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  return emulated_reduction(mask, value, [](unsigned a, unsigned b) { return a + b; });
}
static inline unsigned __reduce_or_sync(unsigned mask, unsigned value) {
  return emulated_reduction(mask, value, [](unsigned a, unsigned b) { return a | b; });
}
static inline unsigned __reduce_min_sync(unsigned mask, unsigned value) {
  return emulated_reduction(mask, value, [](unsigned a, unsigned b) { return a < b ? a : b; });
}
static inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  return emulated_reduction(mask, value, [](unsigned a, unsigned b) { return a > b ? a : b; });
}

// Atomics return the value before.
template <class T>
T atomicAdd(T* p, T value) {
  return emulate::atomic_update(p, [value](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomicOr(T* p, T value) {
  return emulate::atomic_update(p, [value](T old) { return static_cast<T>(old | value); });
}
template <class T>
T atomicAnd(T* p, T value) {
  return emulate::atomic_update(p, [value](T old) { return static_cast<T>(old & value); });
}
template <class T>
T atomicMin(T* p, T value) {
  return emulate::atomic_update(p, [value](T old) { return value < old ? value : old; });
}
template <class T>
T atomicMax(T* p, T value) {
  return emulate::atomic_update(p, [value](T old) { return old < value ? value : old; });
}
template <class T>
T atomicExch(T* p, T value) {
  return emulate::atomic_update(p, [value](T) { return value; });
}
template <class T>
T atomicCAS(T* p, T expected, T value) {
  return emulate::atomic_update(p, [=](T old) { return old == expected ? value : old; });
}
static inline void __threadfence() {}

// Arithmetic.
static inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline unsigned __float_as_uint(float x) { return emulate::bits_as<unsigned>(x); }
static inline int __float_as_int(float x) { return emulate::bits_as<int>(x); }
static inline float __uint_as_float(unsigned x) { return emulate::bits_as<float>(x); }
static inline float __int_as_float(int x) { return emulate::bits_as<float>(x); }
static inline long long __double_as_longlong(double x) { return emulate::bits_as<long long>(x); }
static inline double __longlong_as_double(long long x) { return emulate::bits_as<double>(x); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
using std::max;
using std::min;
