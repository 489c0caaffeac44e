// SPDX-License-Identifier: MIT
// The stand-in for CUDA itself. The first tests are its negative controls: they must fail without shuffles, without
// barriers (SOUP_EMULATE_WITHOUT).
#include <numeric>
#include <thread>
#include <vector>

#include "../../csrc/cuda/launch.h"
#include "../../csrc/device.h"
#include "check.h"

namespace {

// Each row's sum, by lanes of a warp.
__global__ void sum_by_shuffles(const int* values, int* sums) {
  int value = values[blockIdx.x * 32 + threadIdx.x];
  for (int bits = 16; bits > 0; bits /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, bits);
  unsigned odd = __ballot_sync(0xFFFFFFFFu, value % 2);
  if (threadIdx.x == 0) sums[blockIdx.x] = odd == 0 || odd == 0xFFFFFFFFu ? value : -1;
}

// The same by all of a block, in shared memory.
__global__ void sum_by_barriers(const int* values, int* sums) {
  __shared__ int shared[256];
  unsigned t = threadIdx.x;
  shared[t] = values[blockIdx.x * 256 + t];
  __syncthreads();
  for (unsigned half = 128; half > 0; half /= 2) {
    if (t < half) shared[t] += shared[t + half];
    __syncthreads();
  }
  if (t == 0) sums[blockIdx.x] = shared[0];
  __syncthreads();  // the next block's first writes are not this one's last reads
}

__global__ void add_one(int* counter) { atomicAdd(counter, 1); }

std::vector<int> numbers(std::size_t n) {
  std::vector<int> values(n);
  std::iota(values.begin(), values.end(), 1);
  return values;
}

int sum_of(const std::vector<int>& values, std::size_t begin, std::size_t n) {
  auto from = values.begin() + static_cast<std::ptrdiff_t>(begin);
  return std::accumulate(from, from + static_cast<std::ptrdiff_t>(n), 0);
}

}  // namespace

TEST(control_shuffles_bring_values_from_other_lanes) {
  std::vector<int> values = numbers(4 * 32);
  std::vector<int> sums(4);
  SOUP_LAUNCH(sum_by_shuffles, 4, 32, nullptr)(values.data(), sums.data());
  for (std::size_t b = 0; b < 4; ++b) CHECK(sums[b] == sum_of(values, b * 32, 32));
}

TEST(control_barriers_let_lanes_see_what_others_wrote) {
  std::vector<int> values = numbers(3 * 256);
  std::vector<int> sums(3);
  SOUP_LAUNCH(sum_by_barriers, 3, 256, nullptr)(values.data(), sums.data());
  for (std::size_t b = 0; b < 3; ++b) CHECK(sums[b] == sum_of(values, b * 256, 256));
}

TEST(work_on_a_stream_is_done_when_somebody_waits_for_it) {
  using namespace soup;
  int counter = 0;
  cudaStream_t stream = nullptr;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  SOUP_LAUNCH(add_one, 2, 8, stream)(&counter);
  cudaEvent_t half = nullptr;
  CHECK(cudaEventCreateWithFlags(&half, cudaEventDisableTiming) == cudaSuccess);
  CHECK(cudaEventRecord(half, stream) == cudaSuccess);
  SOUP_LAUNCH(add_one, 2, 8, stream)(&counter);
  CHECK(counter == 0);
  CHECK(cudaEventSynchronize(half) == cudaSuccess);
  CHECK(counter == 16);
  device::synchronize(0, reinterpret_cast<device::Stream>(stream));
  CHECK(counter == 32);
  (void)cudaEventDestroy(half);
  (void)cudaStreamDestroy(stream);
}

// A device that is only the default one may be full, or in use by others.
TEST(work_on_one_device_leaves_the_others_alone_and_the_current_one_as_it_was) {
  using namespace soup;
  emulate::set_devices(3);
  std::thread([] {  // one that has not used a device yet
    device::Stream stream = device::stream_create(1);
    device::Event event = device::event_create(1, false);
    void* pinned = device::pinned_allocate(1, 64);
    void* memory = device::allocate(1, 64);
    device::fill_bytes(1, stream, memory, 7, 64);
    device::copy(1, stream, pinned, memory, 64);
    device::event_record(1, event, stream);
    device::event_synchronize(1, event);
    CHECK(static_cast<unsigned char*>(pinned)[63] == 7);
    device::synchronize(1, stream);
    device::load_kernels(1);
    CHECK(THROWN(device::synchronize(3, stream)).kind == ErrorKind::kDevice);
    device::free(1, memory);
    device::pinned_free(1, pinned);
    device::event_destroy(1, event);
    device::stream_destroy(1, stream);
    CHECK(emulate::contexts() == 1u << 1);
    CHECK(device::current_context() == nullptr);

    // Who has chosen a device finds it again.
    CHECK(cudaSetDevice(2) == cudaSuccess);
    void* chosen = device::current_context();
    int now = -1;
    device::synchronize(1, 0);
    CHECK(device::current_context() == chosen);
    CHECK(cudaGetDevice(&now) == cudaSuccess);
    CHECK(now == 2);
  })
      .join();
  emulate::set_devices(1);
}

// So that no kernel is first brought to a device while a graph is captured.
TEST(kernels_are_all_brought_to_a_device_at_once) {
  using namespace soup;
  device::load_kernels(0);
  std::size_t all = emulate::loaded();
  CHECK(all > 40);
  device::load_kernels(0);
  CHECK(emulate::loaded() == all);
}

TEST(launches_that_cuda_refuses_are_errors) {
  int counter = 0;
  SOUP_LAUNCH(add_one, 0, 32, nullptr)(&counter);
  CHECK(THROWN(soup::device::check(cudaGetLastError(), "an empty grid")).kind == soup::ErrorKind::kDevice);
  SOUP_LAUNCH(add_one, 1, 2048, nullptr)(&counter);
  CHECK(cudaGetLastError() == cudaErrorInvalidConfiguration);
  CHECK(counter == 0);
}
