// SPDX-License-Identifier: MIT
// Conversion between Python and the native core, nothing else: columns to structs, the GIL, signals, errors. Tensors
// never come here; addresses and file descriptors do, as integers (pysoup/ops.py and pysoup/file_plan.py know what
// they are).
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "bindings.h"
#include "cpu/dispatch.h"
#include "cpu/probe.h"
#include "cpu/strided.h"
#include "errors.h"
#include "io/mapped.h"
#include "io/plan.h"
#include "io/run.h"

namespace py = pybind11;

namespace soup {
namespace {

// Columns have one row a segment (S) or one a source and segment, source-major (K x S). A source whose fd is -2 takes
// no part in that segment. Checked here: codes, counts and accumulators; the addresses themselves are the caller's
// word.
std::shared_ptr<BoundPlan> make_plan(const py::buffer& n, const py::buffer& dst_at, const py::buffer& dst_fd,
                                     const py::buffer& dst_dtype, const py::buffer& accumulator,
                                     const py::buffer& divisor, const py::buffer& src_at, const py::buffer& src_fd,
                                     const py::buffer& src_dtype, const py::buffer& weights) {
  py::ssize_t segments = length(n);
  py::ssize_t cells = length(src_at);
  py::ssize_t sources = segments == 0 ? 0 : cells / segments;
  Column<std::uint64_t> n_(n, "n", segments), dst_at_(dst_at, "dst_at", segments);
  Column<std::int32_t> dst_fd_(dst_fd, "dst_fd", segments), src_fd_(src_fd, "src_fd", sources * segments);
  Column<std::uint8_t> dst_dtype_(dst_dtype, "dst_dtype", segments), accumulator_(accumulator, "accumulator", segments);
  Column<double> divisor_(divisor, "divisor", segments), weights_(weights, "weights", sources * segments);
  Column<std::uint64_t> src_at_(src_at, "src_at", sources * segments);
  Column<std::uint8_t> src_dtype_(src_dtype, "src_dtype", sources * segments);

  auto plan = std::make_shared<BoundPlan>();
  plan->segments.reserve(static_cast<std::size_t>(segments));
  plan->row_ends.reserve(static_cast<std::size_t>(segments));
  plan->sources.reserve(static_cast<std::size_t>(cells));
  for (std::size_t s = 0; s < static_cast<std::size_t>(segments); ++s) {
    Segment segment{n_[s], 0, 0, {dst_at_[s], dst_fd_[s], dst_dtype_[s]}, divisor_[s], accumulator_[s]};
    bool raw = segment.dst.dtype == kRaw;
    bool valid = raw || (segment.dst.dtype < kFloatTypes && segment.accumulator <= kAccF64 &&
                         (segment.dst.dtype != kF64 || segment.accumulator == kAccF64));
    for (std::size_t k = 0; k < static_cast<std::size_t>(sources); ++k) {
      std::size_t cell = k * static_cast<std::size_t>(segments) + s;
      if (src_fd_[cell] == -2) continue;
      Place place{src_at_[cell], src_fd_[cell], src_dtype_[cell]};
      valid &= raw ? place.dtype == kRaw : place.dtype < kFloatTypes;
      valid &= place.dtype != kF64 || segment.accumulator == kAccF64;
      plan->sources.push_back(place);
      plan->weights.push_back(weights_[cell]);
      plan->weights_f32.push_back(static_cast<float>(weights_[cell]));
      ++segment.count;
    }
    valid &= segment.count >= 1 && (!raw || segment.count == 1);
    if (!valid) throw Error(ErrorKind::kInvalid, "segment " + std::to_string(s) + ": dtypes or counts do not fit");
    append_segment(*plan, segment);
  }
  return plan;
}

// Runs the plan without the GIL. About every 50 ms it comes back for signals (Ctrl-C) and calls progress(bytes). A run
// that fails or is stopped leaves no rows in plan.nonfinite.
void run(const std::shared_ptr<BoundPlan>& plan, const std::string& isa, int threads, std::size_t buffer_bytes,
         const py::object& progress, bool direct) {
  const KernelTable& kernels = kernels_for(isa);
  RunOptions options{threads, buffer_bytes, direct};
  Raised raised;
  Tick tick = [&](std::uint64_t done) {
    return raised.none([&] {
      if (!progress.is_none()) progress(done);
    });
  };
  plan->nonfinite.clear();
  Outcome outcome;
  {
    py::gil_scoped_release release;
    outcome = run_plan(*plan, kernels, options, tick);
  }
  raised.raise_again();
  plan->nonfinite = std::move(outcome.nonfinite);
}

std::uint64_t unsigned_of(const py::handle& value, const char* name) {
  bool integer = PyLong_Check(value.ptr()) != 0;
  std::uint64_t number = integer ? PyLong_AsUnsignedLongLong(value.ptr()) : 0;
  if (!integer || PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    throw Error(ErrorKind::kInvalid, std::string(name) + ": expected integers from 0 to 2^64 - 1");
  }
  return number;
}

std::vector<std::uint64_t> unsigned_all(const py::sequence& values, const char* name) {
  std::vector<std::uint64_t> numbers;
  for (const py::handle& value : values) numbers.push_back(unsigned_of(value, name));
  return numbers;
}

// The memory of a buffer without holes, and where a strided layout starts in it.
StridedSide side_of(const py::buffer& buffer, py::buffer_info& info, bool writable, const py::object& offset,
                    const py::sequence& strides, const char* name) {
  try {
    info = buffer.request(writable);
  } catch (const py::error_already_set&) {
    throw Error(ErrorKind::kInvalid, std::string(name) + ": expected a " + (writable ? "writable " : "") + "buffer");
  }
  if (PyBuffer_IsContiguous(info.view(), 'C') == 0) {
    throw Error(ErrorKind::kInvalid, std::string(name) + ": expected a contiguous buffer");
  }
  auto bytes = static_cast<std::uint64_t>(info.size * info.itemsize);
  return {static_cast<char*>(info.ptr), bytes, unsigned_of(offset, name), unsigned_all(strides, name)};
}

void copy_strided(const py::buffer& dst, const py::object& dst_offset, const py::sequence& dst_strides,
                  const py::buffer& src, const py::object& src_offset, const py::sequence& src_strides,
                  const py::sequence& shape, const py::object& itemsize) {
  py::buffer_info dst_info;
  py::buffer_info src_info;
  StridedSide to = side_of(dst, dst_info, true, dst_offset, dst_strides, "dst");
  StridedSide from = side_of(src, src_info, false, src_offset, src_strides, "src");
  std::vector<std::uint64_t> sizes = unsigned_all(shape, "shape");
  std::uint64_t item = unsigned_of(itemsize, "itemsize");
  py::gil_scoped_release release;
  strided_copy(to, from, sizes, item);
}

double probe(const std::vector<std::uint64_t>& sources, std::uint64_t dst, std::size_t bytes, int threads) {
  std::vector<const void*> pointers;
  for (std::uint64_t source : sources) pointers.push_back(reinterpret_cast<const void*>(source));
  py::gil_scoped_release release;
  return probe_streams(pointers, reinterpret_cast<void*>(dst), bytes, threads);
}

py::dict bandwidth(std::size_t bytes, int threads) {
  Bandwidth measured{};
  {
    py::gil_scoped_release release;
    measured = measure_bandwidth(bytes, threads);
  }
  py::dict result;
  result["read"] = measured.read;
  result["mix"] = measured.mix;
  return result;
}

// Asks for huge pages around a fresh allocation; a refusal costs nothing but speed. Rounded outwards to whole pages, so
// that neighbouring allocations become one advised range: huge pages start at multiples of 2 MiB only.
void advise_huge_pages(std::uint64_t address, std::uint64_t bytes) {
#if defined(__linux__)
  constexpr std::uint64_t kPage = 4096;
  std::uint64_t begin = address / kPage * kPage;
  std::uint64_t end = (address + bytes + kPage - 1) / kPage * kPage;
  (void)::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)address, (void)bytes;
#endif
}

const char* kind_name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kIsa:
      return "isa";
    case ErrorKind::kRead:
      return "read";
    case ErrorKind::kShortRead:
      return "short_read";
    case ErrorKind::kWrite:
      return "write";
    case ErrorKind::kMemory:
      return "memory";
    case ErrorKind::kDevice:
      return "device";
    default:
      return "invalid";
  }
}

}  // namespace
}  // namespace soup

PYBIND11_MODULE(_C, m) {
  using namespace soup;
  m.doc() = "Native core of pysoup; use it through pysoup.ops and pysoup.average.";
  m.attr("compiler") = SOUP_COMPILER;
  m.attr("build_type") = SOUP_BUILD_TYPE;

  // args: (message, kind, fd, offset, errno)
  static py::exception<Error> native_error(m, "NativeError");
  // Local, as the classes are: tests load a second build of this module beside the first.
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Error& e) {
      py::tuple args = py::make_tuple(e.what(), kind_name(e.kind), e.fd, e.offset, e.code);
      PyErr_SetObject(native_error.ptr(), args.ptr());
    }
  });

  py::class_<BoundPlan, std::shared_ptr<BoundPlan>> plan(m, "Plan", py::module_local());
  plan.def(py::init(&make_plan), py::arg("n"), py::arg("dst_at"), py::arg("dst_fd"), py::arg("dst_dtype"),
           py::arg("accumulator"), py::arg("divisor"), py::arg("src_at"), py::arg("src_fd"), py::arg("src_dtype"),
           py::arg("weights"))
      .def_property_readonly("bytes", [](const BoundPlan& self) { return plan_bytes(self); })
      .def_property_readonly("minimum_buffer", [](const BoundPlan& self) { return plan_minimum_buffer(self); })
      .def_readonly("nonfinite", &BoundPlan::nonfinite)
      .def("find_overlap", [](const BoundPlan& self) { return find_overlap(self); })
      .def_property_readonly("segments", [](const BoundPlan& self) { return self.segments.size(); })
      .def("run", &run, py::arg("isa"), py::arg("threads"), py::arg("buffer_bytes") = 0,
           py::arg("progress") = py::none(), py::arg("direct") = false)
      .def("absent_share", [](const BoundPlan& self) { return MappedFiles(self).absent_share(); });
  bind_staged(plan);
  m.def("strided_copy", &copy_strided, py::arg("dst"), py::arg("dst_offset_bytes"), py::arg("dst_strides"),
        py::arg("src"), py::arg("src_offset_bytes"), py::arg("src_strides"), py::arg("shape"), py::arg("itemsize"));
  m.def("available_isas", &available_isas);
  m.def("check_isa", [](const std::string& isa) { return std::string(kernels_for(isa).name); });
  m.def("probe_streams", &probe, py::arg("sources"), py::arg("dst"), py::arg("nbytes"), py::arg("threads"));
  m.def("measure_bandwidth", &bandwidth, py::arg("nbytes"), py::arg("threads"));
  m.def("advise_huge_pages", &advise_huge_pages, py::arg("address"), py::arg("nbytes"));
  bind_logits(m);
  bind_device(m);
  bind_dots(m);
}
