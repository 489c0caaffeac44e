// SPDX-License-Identifier: MIT
// Plans that a GPU carries out while files and host memory stream through it.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <utility>

#include "bindings.h"
#include "io/staged.h"

namespace py = pybind11;

namespace soup {
namespace {

// Without the GIL and with a look at the signals about every 50 ms, as Plan.run. A run that fails or is stopped leaves
// nothing in plan.nonfinite and plan.staged.
void run_staged_plan(const std::shared_ptr<BoundPlan>& plan, int device, std::uint64_t stream, int threads,
                     std::size_t memory, const py::object& progress, bool direct, bool timeline) {
  StagedOptions options{device, stream, threads, memory, direct, timeline};
  Raised raised;
  Tick tick = [&](std::uint64_t done) {
    return raised.none([&] {
      if (!progress.is_none()) progress(done);
    });
  };
  plan->nonfinite.clear();
  plan->staged = StagedOutcome();
  StagedOutcome outcome;
  {
    py::gil_scoped_release release;
    outcome = run_staged(*plan, options, tick);
  }
  raised.raise_again();
  plan->nonfinite = outcome.nonfinite;
  plan->staged = std::move(outcome);
}

py::dict times_of(const ChunkTimes& times) {
  auto span = [](const double* ends) { return py::make_tuple(ends[0], ends[1]); };
  py::dict result;
  result["bytes"] = times.bytes;
  result["thread"] = times.thread;
  result["read"] = span(times.read);
  result["copy"] = span(times.copy);
  result["kernel"] = span(times.kernel);
  result["back"] = span(times.back);
  result["write"] = span(times.write);
  return result;
}

py::list timeline_of(const BoundPlan& plan) {
  py::list result;
  for (const ChunkTimes& times : plan.staged.timeline) result.append(times_of(times));
  return result;
}

}  // namespace

void bind_staged(py::class_<BoundPlan, std::shared_ptr<BoundPlan>>& plan) {
  plan.def("run_staged", &run_staged_plan, py::arg("device"), py::arg("stream"), py::arg("threads"), py::arg("memory"),
           py::arg("progress") = py::none(), py::arg("direct") = false, py::arg("timeline") = false)
      .def_property_readonly("staged_memory", [](const BoundPlan& self) { return staged_memory(self); })
      .def_property_readonly("staged_threads", [](const BoundPlan& self) { return self.staged.threads; })
      .def_property_readonly("staged_buffers", [](const BoundPlan& self) { return self.staged.memory; })
      .def_property_readonly("timeline", &timeline_of);
}

}  // namespace soup
