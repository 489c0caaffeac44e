// SPDX-License-Identifier: MIT
// The Python side of scores of logits: on the CPU (cpu/logits.h) and on a device (device.h).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bindings.h"
#include "cpu/dispatch.h"
#include "cpu/logits.h"
#include "device.h"

namespace py = pybind11;

namespace soup {
namespace {

template <class T>
T* pointer(std::uint64_t address) {
  return reinterpret_cast<T*>(address);
}

// Addresses are the caller's word. shape: candidates, rows, classes; strides of the first two, and base_stride of the
// base's rows, in elements. base: 0 for none. outputs: rank, prediction, margin, confidence, nll, each [candidates,
// rows], 0 for what is not wanted; rank always is, and is at most the largest k. totals: top [len(k), candidates],
// nan_rows and nll [candidates], the last 0.0 where outputs[4] is 0.
struct Request {
  LogitArgs args;
  std::int64_t* top;
  std::int64_t* nan_rows;
  double* nll;

  Request(std::uint64_t logits, std::uint8_t dtype, const std::vector<std::size_t>& shape,
          const std::vector<std::size_t>& strides, std::uint64_t base, std::uint8_t base_dtype, std::size_t base_stride,
          double weight, double scale, std::uint64_t labels, const std::optional<std::int64_t>& ignore,
          const std::vector<std::int64_t>& k, const std::vector<std::uint64_t>& outputs,
          const std::vector<std::uint64_t>& totals) {
    bool valid = dtype <= kBF16 && base_dtype <= kBF16 && shape.size() == 3 && shape[2] > 0 && strides.size() == 2 &&
                 outputs.size() == 5 && (outputs[0] != 0 || shape[0] * shape[1] == 0) && totals.size() == 3;
    if (!valid) throw Error(ErrorKind::kInvalid, "scores: dtypes or counts do not fit");
    args.logits = pointer<const void>(logits);
    args.base = pointer<const void>(base);
    args.candidate_stride = strides[0];
    args.row_stride = strides[1];
    args.base_row_stride = base_stride;
    args.dtype = dtype;
    args.base_dtype = base_dtype;
    args.weight = weight;
    args.scale = scale;
    args.candidates = shape[0];
    args.rows = shape[1];
    args.classes = shape[2];
    args.labels = pointer<const std::int64_t>(labels);
    args.ignoring = ignore.has_value();
    args.ignore_label = ignore.value_or(0);
    args.most_rank = std::max<std::int64_t>(1, k.empty() ? 1 : *std::max_element(k.begin(), k.end()));
    args.rank = pointer<std::int64_t>(outputs[0]);
    args.prediction = pointer<std::int64_t>(outputs[1]);
    args.margin = pointer<double>(outputs[2]);
    args.confidence = pointer<double>(outputs[3]);
    args.nll = pointer<double>(outputs[4]);
    top = pointer<std::int64_t>(totals[0]);
    nan_rows = pointer<std::int64_t>(totals[1]);
    nll = pointer<double>(totals[2]);
  }
};

void score(const std::string& isa, int threads, std::uint64_t logits, std::uint8_t dtype,
           const std::vector<std::size_t>& shape, const std::vector<std::size_t>& strides, std::uint64_t base,
           std::uint8_t base_dtype, std::size_t base_stride, double weight, double scale, std::uint64_t labels,
           const std::optional<std::int64_t>& ignore, const std::vector<std::int64_t>& k,
           const std::vector<std::uint64_t>& outputs, const std::vector<std::uint64_t>& totals) {
  const KernelTable& kernels = kernels_for(isa);
  Request request(logits, dtype, shape, strides, base, base_dtype, base_stride, weight, scale, labels, ignore, k,
                  outputs, totals);
  Raised raised;
  {
    py::gil_scoped_release release;
    if (score_logits(request.args, kernels, threads, [&] { return raised.none([] {}); })) {
      total_logits(request.args, k, request.top, request.nan_rows, request.nll);
    }
  }
  raised.raise_again();
}

// The same with device memory, not waited for; k is read before the call returns. bad_row: one int64, which becomes the
// number of the first row whose label is no class, else -1; such a label counts as the nearest class. scratch:
// device_logit_scratch bytes, aligned to 8; 0 where that is 0.
void score_on_device(int device, std::uint64_t stream, std::uint64_t logits, std::uint8_t dtype,
                     const std::vector<std::size_t>& shape, const std::vector<std::size_t>& strides, std::uint64_t base,
                     std::uint8_t base_dtype, std::size_t base_stride, double weight, double scale,
                     std::uint64_t labels, const std::optional<std::int64_t>& ignore,
                     const std::vector<std::int64_t>& k, const std::vector<std::uint64_t>& outputs,
                     const std::vector<std::uint64_t>& totals, std::uint64_t bad_row, std::uint64_t scratch) {
  Request request(logits, dtype, shape, strides, base, base_dtype, base_stride, weight, scale, labels, ignore, k,
                  outputs, totals);
  device::LogitTotals sums{k.data(),         k.size(),    request.top,
                           request.nan_rows, request.nll, pointer<std::int64_t>(bad_row)};
  py::gil_scoped_release release;
  device::score_logits(device, stream, request.args, sums, pointer<void>(scratch));
}

std::size_t scratch_on_device(const std::vector<std::size_t>& shape) {
  if (shape.size() != 3) throw Error(ErrorKind::kInvalid, "shape: expected candidates, rows and classes");
  LogitArgs args{};
  args.candidates = shape[0];
  args.rows = shape[1];
  args.classes = shape[2];
  return device::logit_scratch(args);
}

}  // namespace

void bind_logits(py::module_& m) {
  m.def("score_logits", &score, py::arg("isa"), py::arg("threads"), py::arg("logits"), py::arg("dtype"),
        py::arg("shape"), py::arg("strides"), py::arg("base"), py::arg("base_dtype"), py::arg("base_stride"),
        py::arg("weight"), py::arg("scale"), py::arg("labels"), py::arg("ignore"), py::arg("k"), py::arg("outputs"),
        py::arg("totals"));
  m.def("device_logit_scratch", &scratch_on_device, py::arg("shape"));
  m.def("device_score_logits", &score_on_device, py::arg("device"), py::arg("stream"), py::arg("logits"),
        py::arg("dtype"), py::arg("shape"), py::arg("strides"), py::arg("base"), py::arg("base_dtype"),
        py::arg("base_stride"), py::arg("weight"), py::arg("scale"), py::arg("labels"), py::arg("ignore"), py::arg("k"),
        py::arg("outputs"), py::arg("totals"), py::arg("bad_row"), py::arg("scratch"));
}

}  // namespace soup
