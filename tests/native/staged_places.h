// SPDX-License-Identifier: MIT
// A model's sources and results wherever run_staged takes them, on a device that is not there (fake_device.h), and runs
// over them that are checked.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "../../csrc/io/staged.h"
#include "check.h"
#include "fake_device.h"
#include "models.h"

namespace soup {

const Tick kGoOn = [](std::uint64_t) { return true; };

inline Place on_device(const fake::Bytes& bytes) { return {bytes.address(), kInMemory, 0}; }
inline Place on_host(const std::vector<unsigned char>& bytes) {
  return {reinterpret_cast<std::uint64_t>(bytes.data()), kOnHost, 0};
}

// Every type, rows of every awkward size, some without elements, some spoiled.
inline std::vector<RowSpec> every_type() {
  std::vector<RowSpec> rows;
  for (std::uint8_t dtype : {kF64, kF32, kF16, kBF16, kF8E4M3, kF8E5M2, kRaw}) {
    bool spoiled = dtype != kRaw;
    for (std::uint64_t n : {0, 1, 63, 64, 65, 1000, 0, 20'011}) rows.push_back({n, dtype, spoiled && n % 5 == 0});
    rows.push_back({7, dtype, spoiled});
  }
  return rows;
}

inline std::vector<RowSpec> one_row(std::uint64_t n) { return {{n, kF32, false}}; }

// Sources of a model and its result in all kinds of places.
class Places {
 public:
  explicit Places(Model& model) : model_(model), device_out_(model.bytes()), host_out_(model.bytes()) {
    for (std::size_t k = 0; k < model.count(); ++k) {
      device_.push_back(std::make_unique<fake::Bytes>(model.source(k)));
      files_.push_back(std::make_unique<File>(model.source(k)));
    }
  }

  // 0: on the device, 1: on the host, 2: in a file.
  Place source(std::size_t k, int kind) const {
    return kind == 0 ? on_device(*device_[k]) : kind == 1 ? on_host(model_.source(k)) : in_file(*files_[k]);
  }
  Place result(int kind) const {
    return kind == 0 ? on_device(device_out_) : kind == 1 ? on_host(host_out_) : in_file(file_out_);
  }
  std::vector<unsigned char> read(int kind) const {
    return kind == 0 ? device_out_.read() : kind == 1 ? host_out_ : file_out_.read(model_.bytes());
  }
  File& file(std::size_t k) { return *files_[k]; }

  Plan plan(int sources, int result) const {
    std::vector<Place> places;
    for (std::size_t k = 0; k < model_.count(); ++k) places.push_back(source(k, sources));
    return model_.plan(places, this->result(result));
  }

 private:
  Model& model_;
  std::vector<std::unique_ptr<fake::Bytes>> device_;
  std::vector<std::unique_ptr<File>> files_;
  fake::Bytes device_out_;
  std::vector<unsigned char> host_out_;
  File file_out_;
};

inline StagedOptions with(std::size_t memory, int threads) {
  StagedOptions options;
  options.memory = memory;
  options.threads = threads;
  return options;
}

inline void check_run(const Plan& plan, const Model& model, const StagedOptions& options, const std::string& where) {
  std::atomic<std::uint64_t> last{0};
  Tick tick = [&](std::uint64_t done) {
    bool grew = done >= last.exchange(done);
    CHECK(grew);
    return true;
  };
  StagedOutcome outcome = run_staged(plan, options, tick);
  std::string what =
      where + " memory " + std::to_string(options.memory) + " threads " + std::to_string(options.threads);
  CHECK_CASE(outcome.finished, what);
  CHECK_CASE(outcome.nonfinite == model.nonfinite(), what);
  CHECK_CASE(last.load() == plan_bytes(plan), what);
  CHECK_CASE(outcome.memory <= options.memory && outcome.threads <= options.threads, what);
}

inline Error failure(const Plan& plan, const StagedOptions& options) {
  return THROWN(run_staged(plan, options, kGoOn));
}

// What a test leaves behind: nothing but the memory that is kept.
class NothingLeft {
 public:
  NothingLeft() : live_(fake::live()) {}
  ~NothingLeft() {
    CHECK(fake::live() == live_);
    CHECK(fake::live_on_device() <= 1);
    CHECK(fake::live_pinned() <= 1);
    fake::most_microseconds.store(0);
  }

 private:
  int live_;
};

}  // namespace soup
