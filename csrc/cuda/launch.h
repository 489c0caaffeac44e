// SPDX-License-Identifier: MIT
// What every .cu needs: CUDA itself, or the stand-in for it (tests/native/emulate.h) where these files are compiled by
// a host compiler to be tested; launches, errors, the current device.
#pragma once

#include <string>

#include "../errors.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
// Name a template's instantiation first (auto* body = kernel<float, 4>;): a macro splits its arguments at commas.
#define SOUP_LAUNCH(kernel, grid, block, stream) kernel<<<(grid), (block), 0, (stream)>>>
#else
#include "emulate.h"
#define SOUP_LAUNCH(kernel, grid, block, stream) ::emulate::launch(kernel, (grid), (block), (stream))
#endif

namespace soup {
namespace device {

inline void check(cudaError_t code, const std::string& what) {
  if (code == cudaSuccess) return;
  (void)cudaGetLastError();  // not to be blamed on the next call
  throw Error(ErrorKind::kDevice, what + ": " + cudaGetErrorString(code));
}

// Makes a device the current one of this thread, for as long as the object lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "current CUDA device");
    if (device != before_) check(cudaSetDevice(device), "CUDA device " + std::to_string(device));
    changed_ = device != before_;
  }
  ~DeviceGuard() {
    // Failed, it is not to be blamed on the next launch either.
    if (changed_ && cudaSetDevice(before_) != cudaSuccess) (void)cudaGetLastError();
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

inline cudaStream_t stream_of(unsigned long long stream) { return reinterpret_cast<cudaStream_t>(stream); }

}  // namespace device
}  // namespace soup
