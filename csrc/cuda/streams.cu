// SPDX-License-Identifier: MIT
// What a run that streams files needs of its own: streams, events, memory.
#include "../device.h"
#include "launch.h"

namespace soup {
namespace device {
namespace {

cudaEvent_t event_of(Event event) { return reinterpret_cast<cudaEvent_t>(event); }

void check_memory(cudaError_t code, const std::string& what) {
  if (code != cudaErrorMemoryAllocation) return check(code, what);
  (void)cudaGetLastError();
  throw Error(ErrorKind::kMemory, "no memory: " + what);
}

// What is given back is given back whatever went wrong before.
void finish(int device, cudaError_t (*give_back)(void*), void* handle) {
  void* before = current_context();
  (void)cudaSetDevice(device);
  (void)give_back(handle);
  make_current(before);
  (void)cudaGetLastError();
}

}  // namespace

// Streams that do not wait for the default stream, nor it for them.
Stream stream_create(int device) {
  DeviceGuard guard(device);
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream on CUDA device " + std::to_string(device));
  return reinterpret_cast<Stream>(stream);
}

void stream_destroy(int device, Stream stream) noexcept {
  auto destroy = [](void* handle) {
    (void)cudaStreamSynchronize(static_cast<cudaStream_t>(handle));
    return cudaStreamDestroy(static_cast<cudaStream_t>(handle));
  };
  finish(device, destroy, stream_of(stream));
}

// Threads that wait for an event sleep: the processor is for those that read.
Event event_create(int device, bool timed) {
  DeviceGuard guard(device);
  cudaEvent_t event = nullptr;
  unsigned flags = cudaEventBlockingSync | (timed ? 0u : cudaEventDisableTiming);
  check(cudaEventCreateWithFlags(&event, flags), "event on CUDA device " + std::to_string(device));
  return reinterpret_cast<Event>(event);
}

void event_destroy(int device, Event event) noexcept {
  auto destroy = [](void* handle) { return cudaEventDestroy(static_cast<cudaEvent_t>(handle)); };
  finish(device, destroy, event_of(event));
}

void event_record(int device, Event event, Stream stream) {
  DeviceGuard guard(device);
  check(cudaEventRecord(event_of(event), stream_of(stream)), "event on CUDA device " + std::to_string(device));
}

void event_synchronize(int device, Event event) {
  DeviceGuard guard(device);
  check(cudaEventSynchronize(event_of(event)), "wait for CUDA device " + std::to_string(device));
}

void stream_wait(int device, Stream stream, Event event) {
  DeviceGuard guard(device);
  check(cudaStreamWaitEvent(stream_of(stream), event_of(event), 0), "order on CUDA device " + std::to_string(device));
}

double event_seconds(int device, Event earlier, Event later) {
  DeviceGuard guard(device);
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, event_of(earlier), event_of(later)), "time between two events");
  return static_cast<double>(milliseconds) * 1e-3;
}

void* pinned_allocate(int device, std::size_t bytes) {
  DeviceGuard guard(device);
  void* memory = nullptr;
  check_memory(cudaHostAlloc(&memory, bytes, cudaHostAllocPortable), std::to_string(bytes) + " pinned bytes");
  return memory;
}

void pinned_free(int device, void* memory) noexcept { finish(device, &cudaFreeHost, memory); }

void* allocate(int device, std::size_t bytes) {
  DeviceGuard guard(device);
  void* memory = nullptr;
  check_memory(cudaMalloc(&memory, bytes), std::to_string(bytes) + " bytes on CUDA device " + std::to_string(device));
  return memory;
}

void free(int device, void* memory) noexcept { finish(device, &cudaFree, memory); }

}  // namespace device
}  // namespace soup
