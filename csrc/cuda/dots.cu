// SPDX-License-Identifier: MIT
#include "dots.cuh"

#include <string>

#include "../device.h"

namespace soup {
namespace device {

void load_dots() {
  load(dots_kernel);
  load(join_dots_kernel);
}

void dots(int device, Stream stream, const void* table, const DotTableShape& shape, double* scratch, double* out) {
  if (shape.count == 0 || shape.segments == 0) return;
  DeviceGuard guard(device);
  std::string what = "dots of " + std::to_string(shape.segments) + " segments with " + std::to_string(shape.count) +
                     " sources, " + std::to_string(shape.tiles) + " tiles";
  auto blocks = [](std::uint64_t warps) { return static_cast<unsigned>((warps + kDotWarps - 1) / kDotWarps); };
  const char* bytes = static_cast<const char*>(table);
  std::uint64_t items = std::uint64_t{shape.tiles} * shape.groups;
  if (items != 0) {
    SOUP_LAUNCH(dots_kernel, blocks(items), kDotThreads, stream_of(stream))(bytes, shape, scratch);
    check(cudaGetLastError(), what);
  }
  std::uint64_t results = std::uint64_t{shape.count} * shape.segments;
  SOUP_LAUNCH(join_dots_kernel, blocks(results), kDotThreads, stream_of(stream))(bytes, shape, scratch, out);
  check(cudaGetLastError(), what + ": joining");
}

}  // namespace device
}  // namespace soup
