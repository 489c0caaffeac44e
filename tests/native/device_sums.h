// SPDX-License-Identifier: MIT
// Weighted sums on the emulated device, in one table, against the generic CPU kernel: the same bits, the same rows.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/device.h"
#include "../../csrc/io/sum_table.h"
#include "check.h"
#include "emulate_runtime.h"
#include "random_values.h"
#include "reference.h"

namespace soup {

// Memory whose begin is `shift` bytes off an alignment to 64. What is only read ends with its allocation: an access
// beyond is a sanitizer's report. What is written lies amid `guard` bytes that must not change.
class Memory {
 public:
  Memory(std::size_t bytes, std::size_t shift, std::size_t guard = 0)
      : size_(bytes), before_(guard + shift), all_(before_ + bytes + guard, 0xCB) {
    void* allocated = nullptr;
    if (posix_memalign(&allocated, 64, all_.size()) != 0) throw std::bad_alloc();
    storage_.reset(static_cast<unsigned char*>(allocated));
    if (!all_.empty()) std::memcpy(storage_.get(), all_.data(), all_.size());
  }
  unsigned char* get() const { return storage_.get() + before_; }
  std::size_t size() const { return size_; }
  bool guards_intact() const {
    std::size_t after = before_ + size_;
    return std::memcmp(storage_.get(), all_.data(), before_) == 0 &&
           std::memcmp(storage_.get() + after, all_.data() + after, all_.size() - after) == 0;
  }

 private:
  struct Free {
    void operator()(unsigned char* p) const { std::free(p); }
  };
  std::size_t size_;
  std::size_t before_;
  std::vector<unsigned char> all_;
  std::unique_ptr<unsigned char[], Free> storage_;
};

constexpr std::size_t kGuard = 64;

struct Row {
  std::uint8_t source, other, out, accumulator;
  std::size_t count, n;
  std::size_t shift, dst_shift;  // bytes by which memory is off an alignment
  int weights;                   // one of Weights
  bool in_place;
};

// What the sources count, and what their sum is divided by: K, 1, what overflows on the way, sums of weights that have
// no exact reciprocal.
enum Weights : int { kEqual, kUnequal, kHuge, kFraction, kThird, kTiny, kWeights };

inline double weight_of(const Row& row, std::size_t k) {
  double huge = row.accumulator == kAccF32 ? 0x1p126 : 0x1p1022;  // sums overflow, means may not
  if (row.weights == kEqual) return 1.0;
  return row.weights == kHuge ? huge : 0.1 + 0.37 * static_cast<double>(k);
}

inline double divisor_of(const Row& row) {
  switch (row.weights) {
    case kUnequal:
      return 1.0;
    case kHuge:
      return 2 * weight_of(row, 0);
    case kFraction:
      return 0.3 + 0.5;
    case kThird:
      return 1000.0 / 3;
    case kTiny:
      return 0x1.FFFFFFFFFFFFFp-30;
    default:
      return static_cast<double>(row.count);
  }
}

inline std::string text(const Row& row) {
  return std::to_string(row.source) + "," + std::to_string(row.other) + " -> " + std::to_string(row.out) + " acc " +
         std::to_string(row.accumulator) + " count " + std::to_string(row.count) + " n " + std::to_string(row.n) +
         " shifts " + std::to_string(row.shift) + " " + std::to_string(row.dst_shift) + " weights " +
         std::to_string(row.weights) + (row.in_place ? " in place" : "");
}

// Rows, their memory, and what must come out of them.
class Sums {
 public:
  explicit Sums(std::uint64_t seed) : random_(seed) {}

  void add(const Row& row) {
    rows_.push_back(row);
    std::vector<std::uint8_t> dtypes;
    std::vector<const void*> sources;
    std::vector<double> weights;
    std::vector<float> weights_f32;
    bool finite = random_.below(2) == 0;
    for (std::size_t k = 0; k < row.count; ++k) {
      dtypes.push_back(k % 3 == 1 ? row.other : row.source);
      sources_.emplace_back(row.n * item_size(dtypes[k]), k == 2 ? row.shift / 2 : row.shift);
      unsigned char* values = sources_.back().get();
      (finite ? random_.fill_finite(values, row.n, dtypes[k]) : random_.fill(values, row.n, dtypes[k]));
      sources.push_back(values);
      weights.push_back(weight_of(row, k));
      weights_f32.push_back(static_cast<float>(weights[k]));
    }
    double divisor = divisor_of(row);
    outs_.emplace_back(row.n * item_size(row.out), row.dst_shift, kGuard);
    if (row.in_place) {
      std::memcpy(outs_.back().get(), sources[0], outs_.back().size());
      sources[0] = outs_.back().get();
    }
    std::vector<unsigned char> expected(outs_.back().size());
    WeightedSumArgs args{sources.data(), dtypes.data(),   weights.data(), weights_f32.data(), row.count, row.n,
                         divisor,        expected.data(), row.out,        row.accumulator,    false};
    (void)kernels_for("generic").weighted_sum(args);
    nonfinite_.push_back(reference_sum(args).visibly_nonfinite);
    expected_.push_back(std::move(expected));
    for (std::size_t k = 0; k < row.count; ++k) {
      plan_.sources.push_back({reinterpret_cast<std::uint64_t>(sources[k]), -1, dtypes[k]});
      plan_.weights.push_back(weights[k]);
      plan_.weights_f32.push_back(weights_f32[k]);
    }
    Place dst{reinterpret_cast<std::uint64_t>(outs_.back().get()), -1, row.out};
    append_segment(plan_, {row.n, 0, row.count, dst, divisor, row.accumulator});
  }

  // With a table of at least `tiles` tiles, if there are as many.
  void check(std::uint64_t tiles = kManyTiles) {
    SumTableShape shape = sum_table_shape(plan_, tiles);
    Memory table(shape.bytes, 0, kGuard);
    pack_sum_table(plan_, shape, table.get());
    CHECK(table.guards_intact());
    std::vector<std::uint32_t> flags(shape.rows, 0);
    device::load_kernels(0);
    std::size_t loaded = emulate::loaded();
    device::weighted_sum(0, 0, table.get(), shape, flags.data());
    CHECK(emulate::loaded() == loaded);
    for (std::size_t r = 0; r < rows_.size(); ++r) {
      bool same = outs_[r].size() == 0 || std::memcmp(outs_[r].get(), expected_[r].data(), outs_[r].size()) == 0;
      CHECK_CASE(same, text(rows_[r]));
      CHECK_CASE(outs_[r].guards_intact(), text(rows_[r]));
      CHECK_CASE(flags[r] == (nonfinite_[r] ? 1u : 0u), text(rows_[r]));
    }
  }

  Random& random() { return random_; }
  std::size_t rows() const { return rows_.size(); }

 private:
  Random random_;
  std::vector<Row> rows_;
  std::vector<Memory> sources_;
  std::vector<Memory> outs_;
  std::vector<std::vector<unsigned char>> expected_;
  std::vector<bool> nonfinite_;
  Plan plan_;
};

}  // namespace soup
