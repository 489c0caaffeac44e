// SPDX-License-Identifier: MIT
#include "../device.h"
#include "weighted_sum.cuh"

namespace soup {
namespace device {
namespace {

// Several shares of the work for each place that a block can have at the same time, so that all end at about the same
// time; few enough for the first look at the table not to count.
constexpr unsigned kBlocksPerProcessor = 32;

using Kernel = void (*)(SumTableView, std::uint32_t, std::uint32_t);

// By sum_kind; none for an f32 accumulator of f64.
constexpr Kernel kKernels[kSumKinds] = {
    nullptr,
    weighted_sum_kernel<float, kF32>,
    weighted_sum_kernel<float, kF16>,
    weighted_sum_kernel<float, kBF16>,
    weighted_sum_kernel<float, kF8E4M3>,
    weighted_sum_kernel<float, kF8E5M2>,
    weighted_sum_kernel<double, kF64>,
    weighted_sum_kernel<double, kF32>,
    weighted_sum_kernel<double, kF16>,
    weighted_sum_kernel<double, kBF16>,
    weighted_sum_kernel<double, kF8E4M3>,
    weighted_sum_kernel<double, kF8E5M2>,
    weighted_sum_kernel<float, kRaw>,
};

}  // namespace

void weighted_sum(int device, Stream stream, const void* table, const SumTableShape& shape, std::uint32_t* nonfinite) {
  if (shape.tiles == 0) return;
  DeviceGuard guard(device);
  std::string what =
      "weighted sum of " + std::to_string(shape.segments) + " segments, " + std::to_string(shape.tiles) + " tiles";
  int processors = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), what);
  std::uint32_t most = static_cast<std::uint32_t>(processors) * kBlocksPerProcessor;
  SumTableView view{static_cast<const char*>(table), shape, nonfinite};
  std::uint32_t begin = 0;
  for (std::uint32_t kind = 0; kind < kSumKinds; ++kind) {
    std::uint32_t end = shape.kind_ends[kind];
    if (begin == end) continue;
    std::uint32_t tiles = end - begin;
    Kernel kernel = kKernels[kind];
    SOUP_LAUNCH(kernel, tiles < most ? tiles : most, kSumThreads, stream_of(stream))(view, begin, end);
    check(cudaGetLastError(), what);
    begin = end;
  }
}

}  // namespace device
}  // namespace soup
