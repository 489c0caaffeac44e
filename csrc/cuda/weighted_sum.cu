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

// By sum_kind. An f32 accumulator has no use for f64; what is halved is wider than its destination.
constexpr Kernel kKernels[kSumKinds] = {
    nullptr,
    weighted_sum_kernel<float, kF32, false>,
    weighted_sum_kernel<float, kF16, false>,
    weighted_sum_kernel<float, kBF16, false>,
    weighted_sum_kernel<float, kF8E4M3, false>,
    weighted_sum_kernel<float, kF8E5M2, false>,
    weighted_sum_kernel<double, kF64, false>,
    weighted_sum_kernel<double, kF32, false>,
    weighted_sum_kernel<double, kF16, false>,
    weighted_sum_kernel<double, kBF16, false>,
    weighted_sum_kernel<double, kF8E4M3, false>,
    weighted_sum_kernel<double, kF8E5M2, false>,
    nullptr,
    nullptr,
    weighted_sum_kernel<float, kF16, true>,
    weighted_sum_kernel<float, kBF16, true>,
    weighted_sum_kernel<float, kF8E4M3, true>,
    weighted_sum_kernel<float, kF8E5M2, true>,
    nullptr,
    weighted_sum_kernel<double, kF32, true>,
    weighted_sum_kernel<double, kF16, true>,
    weighted_sum_kernel<double, kBF16, true>,
    weighted_sum_kernel<double, kF8E4M3, true>,
    weighted_sum_kernel<double, kF8E5M2, true>,
    weighted_sum_kernel<float, kRaw, false>,
};

}  // namespace

void load_sums() {
  for (Kernel kernel : kKernels) {
    if (kernel != nullptr) load(kernel);
  }
}

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
