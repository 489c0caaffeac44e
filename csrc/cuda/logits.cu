// SPDX-License-Identifier: MIT
#include "../device.h"
#include "launch.h"
#include "logit_rows.cuh"
#include "logits.cuh"
#include "logit_totals.cuh"

#include <algorithm>
#include <string>

namespace soup {
namespace device {
namespace {

bool in_f64(const LogitArgs& args) { return args.dtype == kF64 || (args.base != nullptr && args.base_dtype == kF64); }

bool ranks_alone(const LogitArgs& args) {
  return args.prediction == nullptr && args.margin == nullptr && args.confidence == nullptr && args.nll == nullptr;
}

std::string shape_of(const LogitArgs& args) {
  return "score_logits of " + std::to_string(args.candidates) + " candidates, " + std::to_string(args.rows) +
         " rows, " + std::to_string(args.classes) + " classes";
}

// Of classes, in a row: 1 where a warp, or a block's warps together, hold a whole row.
std::size_t blocks_of(const LogitArgs& args) { return (args.classes + kLogitBlock - 1) / kLogitBlock; }

template <class T>
cuda::LogitGrid grid_of(const LogitArgs& args) {
  constexpr std::size_t capacity = cuda::kStripsPerWarp<T>;
  std::size_t strips = (args.classes + kStrip - 1) / kStrip;
  cuda::LogitGrid grid{};
  grid.together = strips > capacity;
  grid.lanes = 32;
  if (!grid.together) {
    while (grid.lanes > 1 && 64 / static_cast<std::size_t>(grid.lanes) * strips <= capacity) grid.lanes /= 2;
  }
  grid.rows = 32 / grid.lanes;
  grid.strips = static_cast<int>(std::min<std::size_t>(strips, kLogitBlock / kStrip));
  grid.reciprocal = 65536u / static_cast<unsigned>(grid.strips) + 1;
  grid.blocks = static_cast<unsigned>(blocks_of(args));
  auto rows = static_cast<unsigned>(args.rows), candidates = static_cast<unsigned>(args.candidates);
  if (grid.blocks == 1 && (args.base == nullptr || candidates == 1)) {
    grid.order = cuda::kRowInCandidate;
    grid.inner_limit = rows;
    grid.middle_limit = 1;
  } else if (args.base != nullptr) {  // the base's row is read once
    grid.order = cuda::kCandidateInBlockInRow;
    grid.inner_limit = candidates;
    grid.middle_limit = grid.blocks;
  } else {
    grid.order = cuda::kBlockInRowInCandidate;
    grid.inner_limit = grid.blocks;
    grid.middle_limit = rows;
  }
  grid.items = static_cast<unsigned long long>(candidates) * rows * grid.blocks;
  grid.tiles = (grid.items + static_cast<unsigned>(grid.rows) - 1) / static_cast<unsigned>(grid.rows);
  return grid;
}

// As many blocks as run at once: each warp takes its share of the tiles.
template <class Kernel>
unsigned blocks_at_once(int device, Kernel kernel, int threads, unsigned long long wanted, const std::string& what) {
  int processors = 0, resident = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), what);
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, 0), what);
  auto most = static_cast<unsigned long long>(processors) * static_cast<unsigned>(std::max(resident, 1));
  return static_cast<unsigned>(std::min(most, wanted));
}

struct Call {
  const LogitArgs& args;
  int device;
  cudaStream_t stream;
  RowState* states;
  unsigned long long* bad_row;
};

template <class T, std::uint8_t kType, bool kBase, bool kRanks>
void score(const Call& call) {
  auto* kernel = &cuda::logits_kernel<T, kType, kBase, kRanks>;
  constexpr int warps = cuda::kWarpsPerBlock<T>;
  cuda::LogitGrid grid = grid_of<T>(call.args);
  unsigned long long wanted = grid.together ? grid.tiles : (grid.tiles + warps - 1) / warps;
  std::string what = shape_of(call.args);
  unsigned blocks = blocks_at_once(call.device, kernel, 32 * warps, wanted, what);
  SOUP_LAUNCH(kernel, dim3(blocks), dim3(32 * warps), call.stream)(call.args, grid, call.states, call.bad_row);
  check(cudaGetLastError(), what);
}

// Whether rows are as logit_rows.cuh wants them: with a base, short enough; neighbours, by fours, as aligned as can be.
bool in_registers(const LogitArgs& args) {
  std::size_t ends = args.classes;
  if (args.rows > 1) ends |= args.row_stride | (args.base != nullptr ? args.base_row_stride : 0);
  if (args.candidates > 1) ends |= args.candidate_stride;
  bool base = reinterpret_cast<std::uintptr_t>(args.base) % (4 * item_size(args.base_dtype)) == 0;
  bool fits = args.base == nullptr || args.classes <= 32 * kStrip;
  return item_size(args.dtype) == 2 && fits && ends % 4 == 0 &&
         reinterpret_cast<std::uintptr_t>(args.logits) % 8 == 0 && (args.base == nullptr || base);
}

template <std::uint8_t kType, int kLanes, int kSteps, bool kBase>
void score_rows(const Call& call) {
  auto* kernel = &cuda::logits_rows_kernel<kType, kLanes, kSteps, kBase>;
  constexpr int warps = cuda::kRowWarps<kBase>;
  cuda::LogitGrid grid = grid_of<float>(call.args);
  if (kBase) grid.inner_limit = static_cast<unsigned>(call.args.candidates);
  grid.rows = 32 / kLanes;
  grid.tiles = (grid.items + static_cast<unsigned>(grid.rows) - 1) / static_cast<unsigned>(grid.rows);
  unsigned long long wanted = (grid.tiles + warps - 1) / warps;
  std::string what = shape_of(call.args);
  unsigned blocks = blocks_at_once(call.device, kernel, 32 * warps, wanted, what);
  SOUP_LAUNCH(kernel, dim3(blocks), dim3(32 * warps), call.stream)(call.args, grid, call.states, call.bad_row);
  check(cudaGetLastError(), what);
}

// As few lanes a row as hold it.
template <std::uint8_t kType, bool kBase>
void score_rows_of(const Call& call) {
  std::size_t strips = (call.args.classes + kStrip - 1) / kStrip;
  if (strips <= 4) return score_rows<kType, 4, 4, kBase>(call);
  if (strips <= 8) return score_rows<kType, 8, 4, kBase>(call);
  if (strips <= 16) return score_rows<kType, 16, 4, kBase>(call);
  if (strips <= 32) return score_rows<kType, 32, 4, kBase>(call);
  if constexpr (!kBase) score_rows<kType, 32, 8, kBase>(call);
}

template <std::uint8_t kType>
void score_in_registers(const Call& call) {
  call.args.base == nullptr ? score_rows_of<kType, false>(call) : score_rows_of<kType, true>(call);
}

template <std::uint8_t kType, bool kBase>
void load_rows() {
  load(cuda::logits_rows_kernel<kType, 4, 4, kBase>);
  load(cuda::logits_rows_kernel<kType, 8, 4, kBase>);
  load(cuda::logits_rows_kernel<kType, 16, 4, kBase>);
  load(cuda::logits_rows_kernel<kType, 32, 4, kBase>);
  if constexpr (!kBase) load(cuda::logits_rows_kernel<kType, 32, 8, kBase>);
}

template <class T, std::uint8_t kType>
void load_type() {
  load(cuda::logits_kernel<T, kType, false, false>);
  load(cuda::logits_kernel<T, kType, false, true>);
  load(cuda::logits_kernel<T, kType, true, false>);
  load(cuda::logits_kernel<T, kType, true, true>);
}

template <class T, std::uint8_t kType>
void score_type(const Call& call) {
  bool base = call.args.base != nullptr;
  if (ranks_alone(call.args)) {
    base ? score<T, kType, true, true>(call) : score<T, kType, false, true>(call);
  } else {
    base ? score<T, kType, true, false>(call) : score<T, kType, false, false>(call);
  }
}

void score_any(const Call& call) {
  if (in_f64(call.args)) return score_type<double, cuda::kAnyType>(call);
  if (!ranks_alone(call.args) && in_registers(call.args)) {
    return call.args.dtype == kF16 ? score_in_registers<kF16>(call) : score_in_registers<kBF16>(call);
  }
  switch (call.args.dtype) {
    case kF16:
      return score_type<float, kF16>(call);
    case kBF16:
      return score_type<float, kBF16>(call);
    default:
      return score_type<float, kF32>(call);
  }
}

void join(const Call& call) {
  auto blocks = static_cast<unsigned>(blocks_of(call.args));
  if (blocks == 1) return;
  std::size_t rows = call.args.candidates * call.args.rows;
  auto grid = static_cast<unsigned>(std::min<std::size_t>((rows + 127) / 128, 65535));
  SOUP_LAUNCH(cuda::join_blocks, dim3(grid), dim3(128), call.stream)
  (call.args, call.states, blocks, !ranks_alone(call.args));
  check(cudaGetLastError(), shape_of(call.args));
}

void total(const Call& call, const LogitTotals& totals) {
  for (std::size_t done = 0;; done += cuda::kMostLimits) {
    std::size_t left = totals.limits - done;
    cuda::Limits limits{};
    limits.count = static_cast<unsigned>(std::min<std::size_t>(left, cuda::kMostLimits));
    std::copy_n(totals.k + done, limits.count, limits.k);
    bool last = left <= cuda::kMostLimits;
    dim3 grid(static_cast<unsigned>(call.args.candidates), limits.count + (last ? 1 : 0));
    SOUP_LAUNCH(cuda::total_rows, grid, dim3(kTotals), call.stream)
    (call.args, limits, totals.top + done * call.args.candidates, totals.nan_rows, totals.nll);
    check(cudaGetLastError(), shape_of(call.args));
    if (last) return;
  }
}

}  // namespace

void load_logits() {
  load_type<double, cuda::kAnyType>();
  load_type<float, kF32>();
  load_type<float, kF16>();
  load_type<float, kBF16>();
  load_rows<kF16, false>();
  load_rows<kF16, true>();
  load_rows<kBF16, false>();
  load_rows<kBF16, true>();
  load(cuda::join_blocks);
  load(cuda::total_rows);
}

std::size_t logit_scratch(const LogitArgs& args) {
  std::size_t blocks = blocks_of(args);
  return blocks <= 1 ? 0 : args.candidates * args.rows * blocks * sizeof(RowState);
}

void score_logits(int device, Stream stream, const LogitArgs& args, const LogitTotals& totals, void* scratch) {
  constexpr std::size_t most = 0x7FFFFFFF;
  if (args.classes == 0 || args.candidates > most || args.rows > most || args.classes > most) {
    throw Error(ErrorKind::kInvalid, shape_of(args) + ": expected 1 class to 2^31 - 1, and no more of the others");
  }
  DeviceGuard guard(device);
  Call call{args, device, stream_of(stream), static_cast<RowState*>(scratch),
            reinterpret_cast<unsigned long long*>(totals.bad_row)};
  check(cudaMemsetAsync(totals.bad_row, 0xFF, sizeof(std::int64_t), call.stream), shape_of(args));
  if (args.candidates == 0) return;
  if (args.rows > 0) {
    score_any(call);
    join(call);
  }
  total(call, totals);
}

}  // namespace device
}  // namespace soup
