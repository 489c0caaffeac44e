// SPDX-License-Identifier: MIT
// The Python side of inner products: on the CPU (cpu/dots.h), streamed (io/dot_stream.h) and on a device (device.h).
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <utility>

#include "bindings.h"
#include "cpu/dispatch.h"
#include "cpu/dots.h"
#include "device.h"
#include "io/dot_stream.h"
#include "io/dot_table.h"
#include "io/mapped.h"

namespace py = pybind11;

namespace soup {
namespace {

// Columns have one row a segment (S), or one a source and segment, source-major (K x S). Addresses are the caller's
// word.
class Dots {
 public:
  Dots(const py::buffer& n, const py::buffer& gradient_at, const py::buffer& gradient_dtype, std::size_t count,
       const py::buffer& src_at, const py::buffer& src_dtype) {
    py::ssize_t rows = length(n);
    auto cells = static_cast<py::ssize_t>(count) * rows;
    Column<std::uint64_t> n_(n, "n", rows), at(gradient_at, "gradient_at", rows), src_at_(src_at, "src_at", cells);
    Column<std::uint8_t> dtype(gradient_dtype, "gradient_dtype", rows), src_dtype_(src_dtype, "src_dtype", cells);
    plan_.count = count;
    auto segments = static_cast<std::size_t>(rows);
    for (std::size_t s = 0; s < segments; ++s) {
      bool valid = dtype[s] < kFloatTypes;
      plan_.append(n_[s], at[s], dtype[s]);
      for (std::size_t k = 0; k < count; ++k) {
        std::uint8_t type = src_dtype_[k * segments + s];
        valid &= type < kFloatTypes;
        plan_.append_source(src_at_[k * segments + s], type);
      }
      if (!valid) throw Error(ErrorKind::kInvalid, "dots: segment " + std::to_string(s) + ": dtypes do not fit");
    }
  }

  // Fills out, f64 [K, S]. Comes back for signals (Ctrl-C) about every 50 ms.
  void run(const std::string& isa, int threads, std::uint64_t out) const {
    const KernelTable& kernels = kernels_for(isa);
    Raised raised;
    {
      py::gil_scoped_release release;
      auto go_on = [&] { return raised.none([] {}); };
      run_dots(plan_, kernels, threads, go_on, static_cast<double*>(pointer(out)));
    }
    raised.raise_again();
  }

  std::uint64_t bytes() const { return plan_.bytes; }
  std::uint64_t scratch() const { return plan_.tiles * plan_.count; }
  std::uint64_t table_bytes() const { return dot_table_shape(plan_).bytes; }
  void write_table(std::uint64_t address) const {
    py::gil_scoped_release release;
    pack_dot_table(plan_, dot_table_shape(plan_), pointer(address));
  }
  void run_on_device(int device, std::uint64_t stream, std::uint64_t table, std::uint64_t scratch,
                     std::uint64_t out) const {
    py::gil_scoped_release release;
    device::dots(device, stream, pointer(table), dot_table_shape(plan_), static_cast<double*>(pointer(scratch)),
                 static_cast<double*>(pointer(out)));
  }

 private:
  DotPlan plan_;
};

// As Dots, with sources that may be byte ranges of open files. Without gradients: all pairs of the sources.
class StreamedDots {
 public:
  StreamedDots(const py::buffer& n, const py::buffer& gradient_at, const py::buffer& gradient_dtype, std::size_t count,
               const py::buffer& src_at, const py::buffer& src_fd, const py::buffer& src_dtype, bool pairs) {
    py::ssize_t rows = length(n);
    py::ssize_t gradients = pairs ? 0 : rows;
    auto cells = static_cast<py::ssize_t>(count) * rows;
    Column<std::uint64_t> n_(n, "n", rows), at(gradient_at, "gradient_at", gradients), src_at_(src_at, "src_at", cells);
    Column<std::int32_t> src_fd_(src_fd, "src_fd", cells);
    Column<std::uint8_t> dtype(gradient_dtype, "gradient_dtype", gradients), src_dtype_(src_dtype, "src_dtype", cells);
    stream_.count = count;
    stream_.pairs = pairs;
    stream_.sources.reserve(static_cast<std::size_t>(cells));
    auto segments = static_cast<std::size_t>(rows);
    for (std::size_t s = 0; s < segments; ++s) {
      Place gradient = pairs ? Place{0, kInMemory, kF64} : Place{at[s], kInMemory, dtype[s]};
      bool valid = gradient.dtype < kFloatTypes;
      stream_.append(n_[s], gradient);
      for (std::size_t k = 0; k < count; ++k) {
        std::size_t cell = k * segments + s;
        valid &= src_dtype_[cell] < kFloatTypes && src_fd_[cell] >= kInMemory;
        stream_.append_source({src_at_[cell], src_fd_[cell], src_dtype_[cell]});
      }
      if (!valid)
        throw Error(ErrorKind::kInvalid, "dots: segment " + std::to_string(s) + ": dtypes or places do not fit");
    }
  }

  // Fills out, f64 [width, S]. Runs without the GIL, as a plan does (bindings.cpp).
  void run(const std::string& isa, int threads, std::size_t buffer_bytes, const py::buffer& out,
           const py::object& progress, bool direct) const {
    const KernelTable& kernels = kernels_for(isa);
    py::buffer_info results = out.request(true);
    auto wanted = static_cast<py::ssize_t>(stream_.width() * stream_.segments.size());
    if (results.itemsize != sizeof(double) || results.size != wanted) {
      throw Error(ErrorKind::kInvalid, "dots: out has to be f64, one number a product");
    }
    Raised raised;
    Tick tick = [&](std::uint64_t done) {
      return raised.none([&] {
        if (!progress.is_none()) progress(done);
      });
    };
    {
      py::gil_scoped_release release;
      stream_dots(stream_, kernels, {threads, buffer_bytes, direct}, tick, static_cast<double*>(results.ptr));
    }
    raised.raise_again();
  }

  std::uint64_t bytes() const { return stream_.bytes; }
  std::size_t segments() const { return stream_.segments.size(); }
  std::size_t width() const { return stream_.width(); }
  std::size_t buffer() const { return minimum_buffer(stream_); }
  std::size_t sums() const { return memory_for_sums(stream_); }
  double absent_share() const { return MappedFiles(source_files(stream_)).absent_share(); }

 private:
  DotStream stream_;
};

}  // namespace

void bind_dots(py::module_& m) {
  py::class_<Dots>(m, "Dots")
      .def(py::init<const py::buffer&, const py::buffer&, const py::buffer&, std::size_t, const py::buffer&,
                    const py::buffer&>(),
           py::arg("n"), py::arg("gradient_at"), py::arg("gradient_dtype"), py::arg("count"), py::arg("src_at"),
           py::arg("src_dtype"))
      .def_property_readonly("bytes", &Dots::bytes)
      .def_property_readonly("scratch", &Dots::scratch)
      .def_property_readonly("table_bytes", &Dots::table_bytes)
      .def("run", &Dots::run, py::arg("isa"), py::arg("threads"), py::arg("out"))
      .def("write_table", &Dots::write_table, py::arg("address"))
      .def("run_on_device", &Dots::run_on_device, py::arg("device"), py::arg("stream"), py::arg("table"),
           py::arg("scratch"), py::arg("out"));
  py::class_<StreamedDots>(m, "StreamedDots", py::module_local())
      .def(py::init<const py::buffer&, const py::buffer&, const py::buffer&, std::size_t, const py::buffer&,
                    const py::buffer&, const py::buffer&, bool>(),
           py::arg("n"), py::arg("gradient_at"), py::arg("gradient_dtype"), py::arg("count"), py::arg("src_at"),
           py::arg("src_fd"), py::arg("src_dtype"), py::arg("pairs"))
      .def_property_readonly("bytes", &StreamedDots::bytes)
      .def_property_readonly("segments", &StreamedDots::segments)
      .def_property_readonly("width", &StreamedDots::width)
      .def_property_readonly("minimum_buffer", &StreamedDots::buffer)
      .def_property_readonly("memory_for_sums", &StreamedDots::sums)
      .def("absent_share", &StreamedDots::absent_share)
      .def("run", &StreamedDots::run, py::arg("isa"), py::arg("threads"), py::arg("buffer_bytes"), py::arg("out"),
           py::arg("progress") = py::none(), py::arg("direct") = false);
}

}  // namespace soup
