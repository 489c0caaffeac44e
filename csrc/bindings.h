// SPDX-License-Identifier: MIT
// What the files of the Python module share.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "errors.h"
#include "io/plan.h"
#include "io/staged.h"

namespace soup {

// A plan as Python sees it: with what its last run has found.
struct BoundPlan : Plan {
  std::vector<std::size_t> nonfinite;
  StagedOutcome staged;  // of a run on a GPU
};

// A one-dimensional contiguous column of T, kept alive by its buffer.
template <class T>
class Column {
 public:
  Column(const pybind11::buffer& source, const char* name, pybind11::ssize_t expected) : info_(source.request()) {
    bool fits = info_.ndim == 1 && info_.itemsize == sizeof(T) && info_.size == expected &&
                (info_.size == 0 || info_.strides[0] == static_cast<pybind11::ssize_t>(sizeof(T)));
    if (!fits) {
      throw Error(ErrorKind::kInvalid, std::string("column '") + name + "': found " + std::to_string(info_.size) +
                                           " items of " + std::to_string(info_.itemsize) + " bytes, expected " +
                                           std::to_string(expected) + " of " + std::to_string(sizeof(T)));
    }
  }
  const T& operator[](std::size_t i) const { return static_cast<const T*>(info_.ptr)[i]; }

 private:
  pybind11::buffer_info info_;
};

// What a callback of the calling thread has raised, if anything; it is raised again once the GIL is back for good.
class Raised {
 public:
  // Runs body with the GIL, after a look at the signals; false where something was raised.
  template <class Body>
  bool none(const Body& body) {
    pybind11::gil_scoped_acquire gil;
    try {
      if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
      body();
      return true;
    } catch (pybind11::error_already_set& error) {
      if (!error_) error_ = std::make_unique<pybind11::error_already_set>(error);
      return false;
    }
  }
  void raise_again() {
    if (!error_) return;
    pybind11::error_already_set error = *error_;
    error_.reset();
    throw error;
  }

 private:
  std::unique_ptr<pybind11::error_already_set> error_;
};

inline void* pointer(std::uint64_t address) { return reinterpret_cast<void*>(address); }
inline pybind11::ssize_t length(const pybind11::buffer& column) { return column.request().size; }

void bind_device(pybind11::module_& m);                                           // bindings_device.cpp
void bind_staged(pybind11::class_<BoundPlan, std::shared_ptr<BoundPlan>>& plan);  // bindings_staged.cpp
void bind_logits(pybind11::module_& m);                                           // bindings_logits.cpp
void bind_dots(pybind11::module_& m);                                             // bindings_dots.cpp

}  // namespace soup
