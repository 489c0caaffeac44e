// SPDX-License-Identifier: MIT
// device.h of a build without CUDA: no devices, and a plain word for whoever asks one to work.
#include "../device.h"
#include "../errors.h"

namespace soup {
namespace device {
namespace {

[[noreturn]] void absent() {
  throw Error(ErrorKind::kDevice, "pysoup was built without CUDA: build it with CMAKE_ARGS=-DPYSOUP_CUDA=ON");
}

}  // namespace

Build build() { return {"none", "", 0}; }

int count() { return 0; }

std::string why_none() { return "built without CUDA"; }

Properties properties(int) { absent(); }

void load_kernels(int) { absent(); }

void copy(int, Stream, void*, const void*, std::size_t) { absent(); }

void fill_bytes(int, Stream, void*, int, std::size_t) { absent(); }

void synchronize(int, Stream) { absent(); }

Stream stream_create(int) { absent(); }
void stream_destroy(int, Stream) noexcept {}
Event event_create(int, bool) { absent(); }
void event_destroy(int, Event) noexcept {}
void event_record(int, Event, Stream) { absent(); }
void event_synchronize(int, Event) { absent(); }
void stream_wait(int, Stream, Event) { absent(); }
double event_seconds(int, Event, Event) { absent(); }
void* pinned_allocate(int, std::size_t) { absent(); }
void pinned_free(int, void*) noexcept {}
void* allocate(int, std::size_t) { absent(); }
void free(int, void*) noexcept {}

void weighted_sum(int, Stream, const void*, const SumTableShape&, std::uint32_t*) { absent(); }

void dots(int, Stream, const void*, const DotTableShape&, double*, double*) { absent(); }

std::size_t logit_scratch(const LogitArgs&) { absent(); }
void score_logits(int, Stream, const LogitArgs&, const LogitTotals&, void*) { absent(); }

}  // namespace device
}  // namespace soup
