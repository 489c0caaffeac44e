// SPDX-License-Identifier: MIT
#include "fake_device.h"

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <set>
#include <thread>

#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/device.h"
#include "../../csrc/errors.h"
#include "../../csrc/float_environment.h"
#include "../../csrc/io/nonfinite.h"

using namespace soup;
using Clock = std::chrono::steady_clock;

namespace fake {

std::atomic<int> most_microseconds{0};
std::atomic<int> failing_allocation{0}, failing_pinning{0}, failing_launch{0}, failing_wait{0};
std::atomic<bool> streams_do_not_wait{false}, hosts_do_not_wait{false};

namespace {

// Addresses on the device are the host's with this added: none that the host can use.
constexpr std::uint64_t kOnDevice = 1ull << 62;

std::mutex mutex;  // of all that follows, of events too
std::condition_variable changed;
std::set<void*> streams_and_events;
// What is kept of it when the program ends is known by these addresses alone, which a leak checker has to find.
std::set<void*>& on_device = *new std::set<void*>;
std::set<void*> pinned;
int own = 0;  // blocks on the device that are tests'
std::atomic<int> freed_blocks{0};

bool is_on_device(const void* address) { return (reinterpret_cast<std::uint64_t>(address) & kOnDevice) != 0; }

template <class T = char>
T* on_host(const void* address) {
  return reinterpret_cast<T*>(reinterpret_cast<std::uint64_t>(address) & ~kOnDevice);
}

template <class T = char>
T* on_host(std::uint64_t address) {
  return on_host<T>(reinterpret_cast<const void*>(address));
}

bool fails(std::atomic<int>& countdown) {
  int left = countdown.load();
  return left > 0 && countdown.fetch_sub(1) == 1;
}

struct Event {
  std::uint64_t asked = 0, reached = 0;  // how often it was recorded
  Clock::time_point at;
};

class Stream {
 public:
  Stream() : thread_([this] { work(); }) {}
  ~Stream() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      ends_ = true;
    }
    wakes_.notify_all();
    thread_.join();
  }

  void add(std::function<void()> work) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      queue_.push_back(std::move(work));
    }
    wakes_.notify_all();
  }

  void synchronize() {
    std::unique_lock<std::mutex> lock(mutex_);
    wakes_.wait(lock, [this] { return queue_.empty(); });
  }

 private:
  void work() {
    FloatEnvironment environment;
    unsigned seed = 1;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wakes_.wait(lock, [this] { return ends_ || !queue_.empty(); });
      if (queue_.empty()) return;
      std::function<void()>& now = queue_.front();  // stays there until it is done
      lock.unlock();
      int most = most_microseconds.load();
      seed = seed * 1664525 + 1013904223;
      if (most > 0) std::this_thread::sleep_for(std::chrono::microseconds(seed / 65536 % most));
      now();
      lock.lock();
      queue_.pop_front();
      wakes_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wakes_;
  std::deque<std::function<void()>> queue_;
  bool ends_ = false;
  std::thread thread_;
};

Stream& default_stream() {
  static Stream* stream = new Stream;
  return *stream;
}

Stream& stream_of(device::Stream stream) { return stream == 0 ? default_stream() : *reinterpret_cast<Stream*>(stream); }

Event& event_of(device::Event event) { return *reinterpret_cast<Event*>(event); }

[[noreturn]] void refuse(ErrorKind kind, const char* what) { throw Error(kind, what); }

void sum(const char* table, const SumTableShape& shape, std::uint32_t* flags) {
  auto* segments = reinterpret_cast<const SumSegment*>(table + shape.segments_at);
  auto* sources = reinterpret_cast<const SumSource*>(table + shape.sources_at);
  auto* row_ends = reinterpret_cast<const std::uint64_t*>(table + shape.row_ends_at);
  for (std::uint32_t s = 0; s < shape.segments; ++s) {
    const SumSegment& segment = segments[s];
    std::size_t size = item_size(segment.dst_dtype);
    char* dst = on_host(segment.origin) + segment.shift * size;
    std::vector<const void*> pointers;
    std::vector<std::uint8_t> dtypes;
    std::vector<double> weights;
    std::vector<float> weights_f32;
    for (std::uint32_t k = segment.first_source; k < segment.first_source + segment.count; ++k) {
      pointers.push_back(on_host(sources[k].origin) + segment.shift * item_size(sources[k].dtype));
      dtypes.push_back(sources[k].dtype);
      weights.push_back(sources[k].weight_f64);
      weights_f32.push_back(sources[k].weight_f32);
    }
    if (segment.dst_dtype == kRaw) {
      std::memmove(dst, pointers[0], segment.n);
      continue;
    }
    kernels_for("generic").weighted_sum({pointers.data(), dtypes.data(), weights.data(), weights_f32.data(),
                                         segment.count, segment.n, segment.divisor, dst, segment.dst_dtype,
                                         segment.accumulator, false});
    std::uint64_t begin = 0;
    for (std::uint32_t row = segment.first_row; row < segment.first_row + segment.rows; ++row) {
      std::uint64_t end = row_ends[row];
      if (has_nonfinite(dst + begin * size, end - begin, segment.dst_dtype)) flags[row] = 1;
      begin = end;
    }
  }
}

}  // namespace

int live() {
  std::lock_guard<std::mutex> lock(mutex);
  return static_cast<int>(streams_and_events.size());
}

int live_on_device() {
  std::lock_guard<std::mutex> lock(mutex);
  return static_cast<int>(on_device.size()) - own;
}

int freed() { return freed_blocks.load(); }

int live_pinned() {
  std::lock_guard<std::mutex> lock(mutex);
  return static_cast<int>(pinned.size());
}

Bytes::Bytes(std::size_t bytes) : size_(bytes), at_(device::allocate(0, bytes)) {
  std::lock_guard<std::mutex> lock(mutex);
  ++own;
}
Bytes::Bytes(const std::vector<unsigned char>& bytes) : Bytes(bytes.size()) {
  if (size_ > 0) std::memcpy(on_host(at_), bytes.data(), size_);
}
Bytes::~Bytes() {
  device::free(0, at_);
  --freed_blocks;
  std::lock_guard<std::mutex> lock(mutex);
  --own;
}
std::uint64_t Bytes::address() const { return reinterpret_cast<std::uint64_t>(at_); }
std::vector<unsigned char> Bytes::read() const {
  auto* begin = on_host<unsigned char>(at_);
  return {begin, begin + size_};
}

struct Busy::State {
  bool over = false;
  std::mutex mutex;
  std::condition_variable changed;
};

Busy::Busy(std::uint64_t stream) : state_(std::make_shared<State>()) {
  stream_of(stream).add([state = state_] {
    std::unique_lock<std::mutex> lock(state->mutex);
    state->changed.wait(lock, [&] { return state->over; });
  });
}

Busy::~Busy() {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->over = true;
  state_->changed.notify_all();
}

}  // namespace fake

namespace soup {
namespace device {

using namespace fake;

Build build() { return {"fake", "", 0}; }
int count() { return 1; }
Properties properties(int) { return {}; }
void load_kernels(int) {}

void copy(int, Stream stream, void* dst, const void* src, std::size_t bytes) {
  if (is_on_device(dst) == is_on_device(src)) std::abort();
  stream_of(stream).add([=] { std::memcpy(on_host(dst), on_host(src), bytes); });
}

void fill_bytes(int, Stream stream, void* dst, int value, std::size_t bytes) {
  if (!is_on_device(dst)) std::abort();
  stream_of(stream).add([=] { std::memset(on_host(dst), value, bytes); });
}

void synchronize(int, Stream stream) { stream_of(stream).synchronize(); }

Stream stream_create(int) {
  auto* stream = new fake::Stream;
  std::lock_guard<std::mutex> lock(fake::mutex);
  streams_and_events.insert(stream);
  return reinterpret_cast<Stream>(stream);
}

void stream_destroy(int, Stream stream) noexcept {
  delete &stream_of(stream);
  std::lock_guard<std::mutex> lock(fake::mutex);
  streams_and_events.erase(reinterpret_cast<void*>(stream));
}

Event event_create(int, bool) {
  auto* event = new fake::Event;
  std::lock_guard<std::mutex> lock(fake::mutex);
  streams_and_events.insert(event);
  return reinterpret_cast<Event>(event);
}

// The object stays: work that was queued may still reach it.
void event_destroy(int, Event event) noexcept {
  static auto* destroyed = new std::vector<Event>;
  std::lock_guard<std::mutex> lock(fake::mutex);
  if (streams_and_events.erase(reinterpret_cast<void*>(event)) != 1) std::abort();
  destroyed->push_back(event);
}

void event_record(int, Event event, Stream stream) {
  std::uint64_t time = 0;
  {
    std::lock_guard<std::mutex> lock(fake::mutex);
    time = ++event_of(event).asked;
  }
  stream_of(stream).add([=] {
    std::lock_guard<std::mutex> lock(fake::mutex);
    event_of(event).reached = time;
    event_of(event).at = Clock::now();
    fake::changed.notify_all();
  });
}

void event_synchronize(int, Event event) {
  if (fails(failing_wait)) refuse(ErrorKind::kDevice, "the device is gone");
  if (hosts_do_not_wait.load()) return;
  std::unique_lock<std::mutex> lock(fake::mutex);
  std::uint64_t time = event_of(event).asked;
  fake::changed.wait(lock, [&] { return event_of(event).reached >= time; });
}

void stream_wait(int, Stream stream, Event event) {
  if (streams_do_not_wait.load()) return;
  std::uint64_t time = 0;
  {
    std::lock_guard<std::mutex> lock(fake::mutex);
    time = event_of(event).asked;
  }
  stream_of(stream).add([=] {
    std::unique_lock<std::mutex> lock(fake::mutex);
    fake::changed.wait(lock, [&] { return event_of(event).reached >= time; });
  });
}

double event_seconds(int, Event earlier, Event later) {
  std::lock_guard<std::mutex> lock(fake::mutex);
  return std::chrono::duration<double>(event_of(later).at - event_of(earlier).at).count();
}

void* pinned_allocate(int, std::size_t bytes) {
  if (fails(failing_pinning)) refuse(ErrorKind::kMemory, "no pinned memory");
  void* memory = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  std::lock_guard<std::mutex> lock(fake::mutex);
  pinned.insert(memory);
  return memory;
}

void pinned_free(int, void* memory) noexcept {
  std::lock_guard<std::mutex> lock(fake::mutex);
  if (pinned.erase(memory) != 1) std::abort();
  std::free(memory);
}

void* allocate(int, std::size_t bytes) {
  if (fails(failing_allocation)) refuse(ErrorKind::kMemory, "no memory on the device");
  void* memory = std::aligned_alloc(256, bytes / 256 * 256 + 256);
  std::lock_guard<std::mutex> lock(fake::mutex);
  on_device.insert(memory);
  return reinterpret_cast<void*>(reinterpret_cast<std::uint64_t>(memory) | kOnDevice);
}

void free(int, void* memory) noexcept {
  std::lock_guard<std::mutex> lock(fake::mutex);
  if (on_device.erase(on_host(memory)) != 1) std::abort();
  ++freed_blocks;
  std::free(on_host(memory));
}

void weighted_sum(int, Stream stream, const void* table, const SumTableShape& shape, std::uint32_t* nonfinite) {
  if (fails(failing_launch)) refuse(ErrorKind::kDevice, "weighted_sum cannot be launched");
  bool aligned = reinterpret_cast<std::uint64_t>(table) % 16 == 0;
  if (!is_on_device(table) || !is_on_device(nonfinite) || !aligned) std::abort();
  SumTableShape of = shape;
  stream_of(stream).add([=] { sum(on_host(table), of, on_host<std::uint32_t>(nonfinite)); });
}

}  // namespace device
}  // namespace soup
