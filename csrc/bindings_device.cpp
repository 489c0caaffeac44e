// SPDX-License-Identifier: MIT
// The Python side of device.h. Addresses and streams are integers and the caller's word; nothing waits for the device
// but device_synchronize.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <utility>

#include "bindings.h"
#include "device.h"
#include "io/sum_table.h"

namespace py = pybind11;

namespace soup {
namespace {

py::dict device_build() {
  device::Build build = device::build();
  py::dict result;
  result["kind"] = build.kind;
  result["architectures"] = build.architectures;
  result["runtime"] = build.runtime;
  return result;
}

py::dict device_properties(int device) {
  device::Properties properties = device::properties(device);
  py::dict result;
  result["name"] = properties.name;
  result["major"] = properties.major;
  result["minor"] = properties.minor;
  result["multiprocessors"] = properties.multiprocessors;
  result["memory_bytes"] = properties.memory_bytes;
  result["l2_bytes"] = properties.l2_bytes;
  result["driver"] = properties.driver;
  return result;
}

// A plan's table for the device: written to memory of the caller's, who brings it there.
class SumTable {
 public:
  explicit SumTable(std::shared_ptr<BoundPlan> plan) : plan_(std::move(plan)), shape_(sum_table_shape(*plan_)) {}
  std::uint64_t bytes() const { return shape_.bytes; }
  std::uint32_t rows() const { return shape_.rows; }
  void write(std::uint64_t address) const {
    py::gil_scoped_release release;
    pack_sum_table(*plan_, shape_, pointer(address));
  }
  void run(int device, std::uint64_t stream, std::uint64_t table, std::uint64_t nonfinite) const {
    py::gil_scoped_release release;
    device::weighted_sum(device, stream, pointer(table), shape_, static_cast<std::uint32_t*>(pointer(nonfinite)));
  }

 private:
  std::shared_ptr<BoundPlan> plan_;
  SumTableShape shape_;
};

}  // namespace

void bind_device(py::module_& m) {
  m.def("device_build", &device_build);
  m.def("device_count", &device::count);
  m.def("device_why_none", &device::why_none);
  m.def("device_load_kernels", &device::load_kernels, py::arg("device"), py::call_guard<py::gil_scoped_release>());
  m.def("device_properties", &device_properties, py::arg("device"));
  m.def(
      "device_copy",
      [](int device, std::uint64_t stream, std::uint64_t dst, std::uint64_t src, std::size_t bytes) {
        device::copy(device, stream, pointer(dst), pointer(src), bytes);
      },
      py::arg("device"), py::arg("stream"), py::arg("dst"), py::arg("src"), py::arg("nbytes"));
  m.def("device_synchronize", &device::synchronize, py::arg("device"), py::arg("stream"),
        py::call_guard<py::gil_scoped_release>());
  py::class_<SumTable>(m, "SumTable", py::module_local())
      .def(py::init<std::shared_ptr<BoundPlan>>(), py::arg("plan"))
      .def_property_readonly("bytes", &SumTable::bytes)
      .def_property_readonly("rows", &SumTable::rows)
      .def("write", &SumTable::write, py::arg("address"))
      .def("run", &SumTable::run, py::arg("device"), py::arg("stream"), py::arg("table"), py::arg("nonfinite") = 0);
}

}  // namespace soup
