// SPDX-License-Identifier: MIT
// The Python side of inner products: on the CPU (cpu/dots.h) and on a device (device.h).
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <utility>

#include "bindings.h"
#include "cpu/dispatch.h"
#include "cpu/dots.h"
#include "device.h"
#include "io/dot_table.h"

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
}

}  // namespace soup
