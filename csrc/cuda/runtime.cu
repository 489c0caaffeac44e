// SPDX-License-Identifier: MIT
// Devices, copies, waiting.
#include "../device.h"
#include "launch.h"

namespace soup {
namespace device {

Build build() {
#if defined(__CUDACC__)
  return {"cuda", SOUP_CUDA_ARCHITECTURES, CUDART_VERSION};
#else
  return {"emulated", "", CUDART_VERSION};
#endif
}

int count() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) == cudaSuccess) return devices;
  (void)cudaGetLastError();  // no driver, or none that runs this CUDA
  return 0;
}

std::string why_none() {
  int devices = 0;
  cudaError_t code = cudaGetDeviceCount(&devices);
  if (code == cudaSuccess) return devices > 0 ? "" : "no CUDA device";
  (void)cudaGetLastError();
  int driver = 0;  // CUDA itself calls an absent driver an old one
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) return "no NVIDIA driver";
  return cudaGetErrorString(code);
}

Properties properties(int device) {
  std::string what = "properties of CUDA device " + std::to_string(device);
  cudaDeviceProp found;
  check(cudaGetDeviceProperties(&found, device), what);
  Properties result;
  result.name = found.name;
  result.major = found.major;
  result.minor = found.minor;
  result.multiprocessors = found.multiProcessorCount;
  result.memory_bytes = found.totalGlobalMem;
  result.l2_bytes = static_cast<std::size_t>(found.l2CacheSize);
  check(cudaDriverGetVersion(&result.driver), what);
  return result;
}

void copy(int device, Stream stream, void* dst, const void* src, std::size_t bytes) {
  DeviceGuard guard(device);
  check(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, stream_of(stream)),
        "copy of " + std::to_string(bytes) + " bytes");
}

void fill_bytes(int device, Stream stream, void* dst, int value, std::size_t bytes) {
  DeviceGuard guard(device);
  check(cudaMemsetAsync(dst, value, bytes, stream_of(stream)), "fill of " + std::to_string(bytes) + " bytes");
}

void synchronize(int device, Stream stream) {
  DeviceGuard guard(device);
  check(cudaStreamSynchronize(stream_of(stream)), "wait for CUDA device " + std::to_string(device));
}

}  // namespace device
}  // namespace soup
