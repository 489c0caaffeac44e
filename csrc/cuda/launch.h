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

// The driver's context that is current in this thread, null for none. cudaSetDevice creates the context of the device
// that it names, some hundreds of megabytes: so who was there before is remembered, and made current again, as a
// context, and a device that is the current one only because no other was chosen stays untouched.
void* current_context() noexcept;
void make_current(void* context) noexcept;

// Makes a device the current one of this thread, for as long as the object lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : before_(current_context()) {
    int now = 0;
    check(cudaGetDevice(&now), "current CUDA device");
    if (device != now) check(cudaSetDevice(device), "CUDA device " + std::to_string(device));
  }
  ~DeviceGuard() { make_current(before_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  void* const before_;
};

// Brings a kernel to the current device.
template <class Kernel>
void load(Kernel kernel) {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel), "kernels brought to a CUDA device");
}

// All of those in one .cu.
void load_sums();
void load_dots();
void load_logits();

inline cudaStream_t stream_of(unsigned long long stream) { return reinterpret_cast<cudaStream_t>(stream); }

}  // namespace device
}  // namespace soup
