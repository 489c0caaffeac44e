// SPDX-License-Identifier: MIT
// Devices, copies, waiting.
#include "../device.h"
#include "launch.h"

namespace soup {
namespace device {
namespace {

// A function of the driver's, which is not linked; null where there is none.
void* driver_function(const char* name) noexcept {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
  cudaError_t code = cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result);
#else
  cudaError_t code = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result);
#endif
  if (code == cudaSuccess && result == cudaDriverEntryPointSuccess) return found;
  (void)cudaGetLastError();
  return nullptr;
}

}  // namespace

void* current_context() noexcept {
  static const auto get = reinterpret_cast<int (*)(void**)>(driver_function("cuCtxGetCurrent"));
  void* context = nullptr;
  return get != nullptr && get(&context) == 0 ? context : nullptr;
}

void make_current(void* context) noexcept {
  static const auto set = reinterpret_cast<int (*)(void*)>(driver_function("cuCtxSetCurrent"));
  if (set != nullptr && current_context() != context) (void)set(context);
}

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

void load_kernels(int device) {
  DeviceGuard guard(device);
  load_sums();
  load_dots();
  load_logits();
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
