// SPDX-License-Identifier: MIT
#include "emulate_runtime.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <new>
#include <numeric>
#include <set>
#include <utility>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

// One at a time, whatever the host thread; work may enqueue nothing.
std::recursive_mutex all;
thread_local cudaError_t last_error = cudaSuccess;
std::atomic<unsigned long> launched{0};
emulate::Shuffle shuffle;

cudaError_t failed(cudaError_t code) {
  last_error = code;
  return code;
}

int devices = 1;
std::atomic<unsigned> created{0};
thread_local int chosen = 0;                    // by cudaSetDevice
thread_local int current = -1;                  // whose context is current: none
std::set<std::pair<int, const void*>> kernels;  // of a device

// What every call but a few questions does first: without a context it takes, or creates, the chosen device's.
int use() {
  if (current < 0) current = chosen;
  created |= 1u << current;
  return current;
}

// The driver's names for contexts: the device's number, and one more.
int get_context(void** context) {
  *context = reinterpret_cast<void*>(static_cast<std::intptr_t>(current) + 1);
  return 0;
}

int set_context(void* context) {
  current = static_cast<int>(reinterpret_cast<std::intptr_t>(context)) - 1;
  return 0;
}

}  // namespace

struct CUstream_st {
  std::deque<std::function<void()>> pending;
  unsigned long enqueued = 0;
  unsigned long done = 0;
};

struct CUevent_st {
  cudaStream_t stream = nullptr;
  unsigned long ticket = 0;  // how much of the stream is done when the event is
  Clock::time_point at;
};

namespace {

void advance(cudaStream_t stream) {
  std::function<void()> work = std::move(stream->pending.front());
  stream->pending.pop_front();
  work();
  ++stream->done;
}

void drain(cudaStream_t stream, unsigned long ticket) {
  while (stream != nullptr && stream->done < ticket) advance(stream);
}

}  // namespace

namespace emulate {
namespace {

bool without(const char* what) {
  const char* named = std::getenv("SOUP_EMULATE_WITHOUT");
  return named != nullptr && std::strcmp(named, what) == 0;
}

}  // namespace

bool barriers() {
  static const bool on = !without("barriers");
  return on;
}

bool shuffles() {
  static const bool on = !without("shuffles");
  return on;
}

void set_devices(int count) {
  devices = count;
  created = 0;
}

unsigned contexts() { return created; }

std::size_t loaded() {
  int device = use();
  std::lock_guard<std::recursive_mutex> lock(all);
  return static_cast<std::size_t>(
      std::count_if(kernels.begin(), kernels.end(), [&](const auto& kernel) { return kernel.first == device; }));
}

void load(const void* kernel) {
  std::lock_guard<std::recursive_mutex> lock(all);
  kernels.emplace(use(), kernel);
}

void enqueue(cudaStream_t stream, std::function<void()> work) {
  use();
  std::lock_guard<std::recursive_mutex> lock(all);
  if (stream == nullptr) return work();
  stream->pending.push_back(std::move(work));
  ++stream->enqueued;
}

void run_grid(dim3 grid, dim3 size, const std::function<void()>& body) {
  std::vector<unsigned> order(static_cast<std::size_t>(grid.x) * grid.y * grid.z);
  std::iota(order.begin(), order.end(), 0u);
  shuffle(order);
  Block block;
  block.size = size;
  block.grid = grid;
  block.body = body;
  for (unsigned number : order) {
    block.index = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
    block.lanes.assign(static_cast<std::size_t>(size.x) * size.y * size.z, Lane{});
    for (unsigned i = 0; i < block.lanes.size(); ++i) {
      Lane& lane = block.lanes[i];
      lane.thread = {i % size.x, i / size.x % size.y, i / size.x / size.y};
      lane.number = i;
      lane.block = &block;
    }
    run(block);
  }
}

void fail_next(cudaError_t code) { last_error = code; }

unsigned long launches() { return launched; }

bool configured(dim3 grid, dim3 block) {
  unsigned long lanes = static_cast<unsigned long>(block.x) * block.y * block.z;
  bool valid = lanes > 0 && lanes <= 1024 && grid.x > 0 && grid.x <= 0x7FFFFFFFu && grid.y > 0 && grid.y <= 65535 &&
               grid.z > 0 && grid.z <= 65535;
  if (!valid) (void)failed(cudaErrorInvalidConfiguration);
  ++launched;
  return valid;
}

}  // namespace emulate

const char* cudaGetErrorString(cudaError_t code) {
  switch (code) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorNotReady:
      return "device not ready";
    default:
      return "an illegal memory access was encountered";
  }
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = devices;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = current < 0 ? chosen : current;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= devices) return failed(cudaErrorInvalidDevice);
  chosen = current = device;
  use();
  return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  *result = cudaDriverEntryPointSuccess;
  if (std::strcmp(symbol, "cuCtxGetCurrent") == 0) {
    *function = reinterpret_cast<void*>(&get_context);
  } else if (std::strcmp(symbol, "cuCtxSetCurrent") == 0) {
    *function = reinterpret_cast<void*>(&set_context);
  } else {
    *result = cudaDriverEntryPointSymbolNotFound;
  }
  return cudaSuccess;
}

// Few multiprocessors, so that blocks have several shares of the work to do.
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= devices) return failed(cudaErrorInvalidDevice);
  *properties = {"emulated", std::size_t{1} << 32, 0, 0, 2, 1 << 20};
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) return cudaErrorInvalidDevice;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = properties.multiProcessorCount;
      break;
    case cudaDevAttrL2CacheSize:
      *value = properties.l2CacheSize;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = properties.major;
      break;
    default:
      *value = properties.minor;
  }
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *free = *total = std::size_t{1} << 32;
  return cudaSuccess;
}

// Aligned as CUDA's is, and full of what no test expects.
cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  use();
  *memory = ::operator new(bytes, std::align_val_t(256), std::nothrow);
  if (*memory == nullptr) return failed(cudaErrorMemoryAllocation);
  std::memset(*memory, 0xCB, bytes);
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  use();
  ::operator delete(memory, std::align_val_t(256));
  return cudaSuccess;
}

// At a page, as CUDA's.
cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
  use();
  *memory = ::operator new(bytes, std::align_val_t(4096), std::nothrow);
  return *memory == nullptr ? failed(cudaErrorMemoryAllocation) : cudaSuccess;
}

cudaError_t cudaMallocHost(void** memory, std::size_t bytes) { return cudaHostAlloc(memory, bytes, 0); }

cudaError_t cudaFreeHost(void* memory) {
  use();
  ::operator delete(memory, std::align_val_t(4096));
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* dst, const void* src, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  emulate::enqueue(stream, [=] {
    if (bytes > 0) std::memmove(dst, src, bytes);
  });
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* dst, const void* src, std::size_t bytes, cudaMemcpyKind kind) {
  return cudaMemcpyAsync(dst, src, bytes, kind, nullptr);
}

cudaError_t cudaMemsetAsync(void* dst, int value, std::size_t bytes, cudaStream_t stream) {
  emulate::enqueue(stream, [=] {
    if (bytes > 0) std::memset(dst, value, bytes);
  });
  return cudaSuccess;
}

cudaError_t cudaMemset(void* dst, int value, std::size_t bytes) { return cudaMemsetAsync(dst, value, bytes, nullptr); }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  use();
  *stream = new CUstream_st;
  return cudaSuccess;
}

// CUDA lets the work end first, at some time.
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  use();
  (void)cudaStreamSynchronize(stream);
  // The object stays, for events that were recorded on it.
  static auto* destroyed = new std::vector<cudaStream_t>;
  std::lock_guard<std::recursive_mutex> lock(all);
  destroyed->push_back(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  use();
  std::lock_guard<std::recursive_mutex> lock(all);
  if (stream != nullptr) drain(stream, stream->enqueued);
  return cudaSuccess;
}

// Whoever asks again and again sees an end.
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  std::lock_guard<std::recursive_mutex> lock(all);
  if (stream == nullptr || stream->pending.empty()) return cudaSuccess;
  advance(stream);
  return stream->pending.empty() ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  use();
  *event = new CUevent_st;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  (void)cudaEventSynchronize(event);
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  std::lock_guard<std::recursive_mutex> lock(all);
  emulate::enqueue(stream, [event] { event->at = Clock::now(); });
  event->stream = stream;
  event->ticket = stream == nullptr ? 0 : stream->enqueued;
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  use();
  std::lock_guard<std::recursive_mutex> lock(all);
  drain(event->stream, event->ticket);
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  std::lock_guard<std::recursive_mutex> lock(all);
  cudaStream_t stream = event->stream;
  if (stream == nullptr || stream->done >= event->ticket) return cudaSuccess;
  advance(stream);
  return stream->done >= event->ticket ? cudaSuccess : cudaErrorNotReady;
}

// What was recorded last counts, even if it is recorded anew before the stream comes this far.
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  std::lock_guard<std::recursive_mutex> lock(all);
  cudaStream_t other = event->stream;
  unsigned long ticket = event->ticket;
  if (other != nullptr && other != stream) emulate::enqueue(stream, [=] { drain(other, ticket); });
  return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  if (cudaEventQuery(begin) != cudaSuccess || cudaEventQuery(end) != cudaSuccess) return cudaErrorNotReady;
  *milliseconds = std::chrono::duration<float, std::milli>(end->at - begin->at).count();
  return cudaSuccess;
}
