// SPDX-License-Identifier: MIT
// THE SEAM to a GPU: all that the rest of the program may ask of one. Plain C++, no CUDA header; built without CUDA the
// same symbols are there and throw (csrc/cuda/none.cpp).
//
// Contract of every function that takes a Stream: it is asynchronous on that stream, allocates nothing (scratch is
// passed in) and waits for nothing, so that a CUDA graph can capture it. Memory is the caller's word: device memory, or
// pinned host memory, that lives until the work is done. The calling thread's current device is left as it was, and no
// other device is touched. A failure is an Error(kDevice) with the call's shapes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "dot_table.h"
#include "kernels.h"
#include "sum_table.h"

namespace soup {
namespace device {

using Stream = std::uint64_t;  // a cudaStream_t, of whichever runtime: torch's own works. 0 is the default stream.

// What this build can do: "none", "cuda" or "emulated" (tests), and with what.
struct Build {
  std::string kind;
  std::string architectures;  // "80-real 90", as CMake's CUDA_ARCHITECTURES: 90 with PTX for what is newer
  int runtime;                // 13000 for CUDA 13.0; 0 without
};
Build build();

// 0 where there is no driver, no device, or no CUDA in this build; never throws.
int count();

// One line that says why that is, or nothing where there are devices.
std::string why_none();

struct Properties {
  std::string name;
  int major, minor;  // compute capability
  int multiprocessors;
  std::size_t memory_bytes, l2_bytes;
  int driver;  // the newest CUDA that the driver runs, as runtime above
};
Properties properties(int device);

// Brings all kernels to the device. CUDA else does so at the first launch of each, which may not be while a graph is
// captured.
void load_kernels(int device);

void copy(int device, Stream stream, void* dst, const void* src, std::size_t bytes);
void fill_bytes(int device, Stream stream, void* dst, int value, std::size_t bytes);
void synchronize(int device, Stream stream);

// What a run that streams files needs of its own. These allocate, and the destroying ones wait for what still runs;
// they never throw, and take what creation returned. An event marks a point in a stream; timed ones also tell when it
// was reached.
using Event = std::uint64_t;
Stream stream_create(int device);
void stream_destroy(int device, Stream stream) noexcept;  // once all its work is done, or has failed
Event event_create(int device, bool timed);
void event_destroy(int device, Event event) noexcept;
void event_record(int device, Event event, Stream stream);
void event_synchronize(int device, Event event);
void stream_wait(int device, Stream stream, Event event);      // the stream's later work waits, the caller does not
double event_seconds(int device, Event earlier, Event later);  // between two timed events that were reached
void* pinned_allocate(int device, std::size_t bytes);          // host memory at a page; Error(kMemory)
void pinned_free(int device, void* memory) noexcept;
void* allocate(int device, std::size_t bytes);  // device memory, aligned to 256; Error(kMemory)
void free(int device, void* memory) noexcept;

// Carries out a table of sum_table.h. nonfinite: null, or one zeroed word a row of the plan; the rows with a NaN or an
// infinity among their results get a 1 (e4m3 has no infinity: with a NaN).
void weighted_sum(int device, Stream stream, const void* table, const SumTableShape& shape, std::uint32_t* nonfinite);

// Carries out a table of dot_table.h. scratch: shape.count * shape.tiles numbers; out: f64 [count, segments].
void dots(int device, Stream stream, const void* table, const DotTableShape& shape, double* scratch, double* out);

// Rows of logits scored, and what the rows come to: LogitArgs of kernels.h with all pointers to device memory, but that
// labels are checked here: one that is no class counts as the nearest, and bad_row becomes the first row with such a
// one, else -1. A run repeats to the bit, and equals the CPU's.
struct LogitTotals {
  const std::int64_t* k;  // in host memory, read before the call returns
  std::size_t limits;     // how many k there are
  // Device memory. top: [limits, candidates], the ranks below each k; nan_rows: [candidates]; nll: [candidates], 0.0
  // where args.nll is null; bad_row: one number.
  std::int64_t* top;
  std::int64_t* nan_rows;
  double* nll;
  std::int64_t* bad_row;
};
std::size_t logit_scratch(const LogitArgs& args);  // bytes of device memory, aligned to 8, that score_logits needs
void score_logits(int device, Stream stream, const LogitArgs& args, const LogitTotals& totals, void* scratch);

}  // namespace device
}  // namespace soup
