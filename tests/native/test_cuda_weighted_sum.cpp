// SPDX-License-Identifier: MIT
// The weighted sums of a device, emulated, against the generic CPU kernel: the same bits and the same rows.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/device.h"
#include "../../csrc/io/sum_table.h"
#include "check.h"
#include "device_sums.h"
#include "emulate_runtime.h"
#include "random_values.h"
#include "reference.h"

using namespace soup;

namespace {

void run(const Plan& plan, std::uint32_t* flags) {
  SumTableShape shape = sum_table_shape(plan);
  Memory table(shape.bytes, 0);
  pack_sum_table(plan, shape, table.get());
  device::weighted_sum(0, 0, table.get(), shape, flags);
}

bool wide(std::uint8_t source, std::uint8_t other, std::uint8_t out) {
  return source == kF64 || other == kF64 || out == kF64;
}

}  // namespace

TEST(device_sums_equal_the_cpu_for_all_types_and_sizes) {
  const std::size_t sizes[] = {0, 1, 2, 3, 7, 8, 15, 31, 32, 33, 63, 127, 257, 1000};
  const std::size_t counts[] = {1, 2, 3, 4, 5, 8, 17, 40};
  const std::size_t shifts[] = {0, 0, 0, 16, 8, 4, 2, 1, 6, 7};
  Sums sums(1);
  for (std::uint8_t source = 0; source < kFloatTypes; ++source) {
    for (std::uint8_t other = 0; other < kFloatTypes; ++other) {
      for (std::uint8_t out = 0; out < kFloatTypes; ++out) {
        for (std::uint8_t accumulator : {kAccF32, kAccF64}) {
          if (wide(source, other, out) && accumulator == kAccF32) continue;
          for (int i = 0; i < 2 * kWeights; ++i) {
            Random& random = sums.random();
            sums.add({source, other, out, accumulator, random.one_of(counts), random.one_of(sizes),
                      random.one_of(shifts), random.one_of(shifts), i % kWeights, source == out && i % 2 == 0});
          }
        }
      }
    }
  }
  CHECK(sums.rows() > 2000);
  sums.check();
}

TEST(device_sums_equal_the_cpu_for_long_rows) {
  const std::size_t sizes[] = {2047, 2048, 2049, 4095, 4096, 4097, 6000, 13001};
  const std::size_t counts[] = {1, 2, 3, 7, 8};
  const std::size_t shifts[] = {0, 0, 0, 0, 2, 6, 8};
  for (std::uint64_t most : {1, 20, 1 << 16}) {  // rounds of a tile: many, some, one
    Sums sums(2 + most);
    Random& random = sums.random();
    for (std::uint8_t source = 0; source < kFloatTypes; ++source) {
      for (std::uint8_t out = 0; out < kFloatTypes; ++out) {
        for (std::uint8_t accumulator : {kAccF32, kAccF64}) {
          if (wide(source, source, out) && accumulator == kAccF32) continue;
          std::size_t shift = random.one_of(shifts);
          int weights = static_cast<int>(random.below(kWeights));
          sums.add({source, source, out, accumulator, random.one_of(counts), random.one_of(sizes), shift,
                    random.below(3) == 0 ? 0 : shift, weights, source == out});
        }
      }
    }
    sums.check(most);
  }
}

// Sources that are wider than their result, as a running sum is: with narrow ones beside them, in any order, cut off
// anywhere.
TEST(device_sums_of_wide_sources_equal_the_cpu) {
  const std::size_t sizes[] = {1, 3, 4, 5, 127, 1023, 1024, 1025, 2048, 3000, 5001};
  const std::size_t counts[] = {1, 2, 3, 8};
  Sums sums(6);
  Random& random = sums.random();
  auto add = [&](std::uint8_t source, std::uint8_t other, std::uint8_t out, std::uint8_t accumulator) {
    for (int i = 0; i < 2 * kWeights; ++i) {
      // Aligned, aligned to less than a chunk, off by an element, not aligned at all.
      std::size_t shift = i % 4 == 0 ? 0 : i % 4 == 1 ? 8 : i % 4 == 2 ? item_size(source) : random.below(16);
      std::size_t dst_shift = i % 4 == 3 ? 0 : shift / item_size(source) * item_size(out);
      bool in_place = source == out && i % 3 == 0;
      sums.add({source, other, out, accumulator, random.one_of(counts), random.one_of(sizes), shift,
                in_place ? shift : dst_shift, i % kWeights, in_place});
    }
  };
  for (std::uint8_t other = 0; other < kFloatTypes; ++other) {
    for (std::uint8_t out = 0; out < kFloatTypes; ++out) {
      add(kF64, other, out, kAccF64);
      add(other, kF64, out, kAccF64);
      if (other == kF64 || item_size(out) > 2) continue;
      add(kF32, other, out, kAccF32);
      add(other, kF32, out, kAccF32);
    }
  }
  sums.check();
}

// Elements that the quick way takes, of a sum of one segment of 4096.
std::uint64_t quick_elements(std::vector<std::uint8_t> sources, std::uint8_t out, std::uint8_t accumulator,
                             double divisor) {
  Plan plan;
  for (std::uint8_t dtype : sources) {
    plan.sources.push_back({1u << 20, -1, dtype});
    plan.weights.push_back(1.0);
    plan.weights_f32.push_back(1.0f);
  }
  append_segment(plan, {4096, 0, sources.size(), {1u << 20, -1, out}, divisor, accumulator});
  SumTableShape shape = sum_table_shape(plan);
  Memory table(shape.bytes, 0);
  pack_sum_table(plan, shape, table.get());
  SumSegment segment;
  std::memcpy(&segment, table.get() + shape.segments_at, sizeof(segment));
  return std::uint64_t{segment.quick_end - segment.quick_begin} * segment.chunk;
}

TEST(device_sums_take_the_quick_way_for_any_types_and_divisor) {
  for (std::uint8_t source = 0; source < kFloatTypes; ++source) {
    for (std::uint8_t other = 0; other < kFloatTypes; ++other) {
      for (std::uint8_t out = 0; out < kFloatTypes; ++out) {
        for (std::uint8_t accumulator : {kAccF32, kAccF64}) {
          if (wide(source, other, out) && accumulator == kAccF32) continue;
          for (double divisor : {1.0, 2.0, 7.0, 0.3 + 0.5, 1.1, 1e-3, 12345.678}) {
            CHECK_CASE(quick_elements({source, other}, out, accumulator, divisor) == 4096,
                       std::to_string(source) + "," + std::to_string(other) + " -> " + std::to_string(out) + " acc " +
                           std::to_string(accumulator) + " divisor " + std::to_string(divisor));
          }
        }
      }
    }
  }
  // What no proof covers: no reciprocal in range, no mean at all.
  for (double divisor : {-2.0, 0.0, 0x1p40, 0x1p-40, static_cast<double>(INFINITY), std::nan("")}) {
    CHECK_CASE(quick_elements({kF32, kBF16}, kBF16, kAccF32, divisor) == 0, std::to_string(divisor));
  }
}

// As a model is: mixed types, most rows small, all in one table.
TEST(device_sums_of_thousands_of_rows_take_one_launch_a_kind) {
  Sums sums(3);
  Random& random = sums.random();
  for (int i = 0; i < 3000; ++i) {
    std::uint8_t dtype = i % 5 == 0 ? kF32 : kBF16;
    std::uint8_t accumulator = dtype == kF32 ? kAccF64 : kAccF32;
    std::size_t shift = random.below(4) == 0 ? 2 * item_size(dtype) : 0;
    sums.add({dtype, dtype, dtype, accumulator, 3, random.below(100), shift, shift, kEqual, false});
  }
  unsigned long before = emulate::launches();
  sums.check();
  CHECK(emulate::launches() - before == 2);
}

// Every 16-bit number to every type.
// Few enough for a thread a lane, under ThreadSanitizer.
TEST(device_sums_of_few_rows_equal_the_cpu) {
  Sums sums(4);
  for (int i = 0; i < 4; ++i) {
    std::size_t shift = i == 3 ? 2 : 0;
    std::size_t n = i == 0 ? 5000 : 300;
    sums.add({kBF16, kBF16, kBF16, kAccF32, 3, n, shift, shift, i % 4 == 3 ? kFraction : i, i % 2 == 0});
  }
  sums.check();
}

TEST(device_sums_of_all_16_bit_numbers_equal_the_cpu) {
  for (std::uint8_t source : {kF16, kBF16}) {
    std::vector<std::uint16_t> values(65536);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::uint16_t>(i);
    for (std::uint8_t out = 0; out < kFloatTypes; ++out) {
      for (std::uint8_t accumulator : {kAccF32, kAccF64}) {
        if (out == kF64 && accumulator == kAccF32) continue;
        Memory result(values.size() * item_size(out), 0, kGuard);
        std::vector<unsigned char> expected(result.size());
        const void* pointer = values.data();
        double weight = 0.75;
        float weight_f32 = 0.75f;
        WeightedSumArgs args{&pointer, &source,         &weight, &weight_f32, 1,    values.size(),
                             1.0,      expected.data(), out,     accumulator, false};
        (void)kernels_for("generic").weighted_sum(args);
        Plan plan;
        plan.sources = {{reinterpret_cast<std::uint64_t>(pointer), -1, source}};
        plan.weights = {weight};
        plan.weights_f32 = {weight_f32};
        Place dst{reinterpret_cast<std::uint64_t>(result.get()), -1, out};
        append_segment(plan, {values.size(), 0, 1, dst, 1.0, accumulator});
        run(plan, nullptr);
        CHECK_CASE(std::memcmp(result.get(), expected.data(), result.size()) == 0,
                   std::to_string(source) + " -> " + std::to_string(out) + " acc " + std::to_string(accumulator));
      }
    }
  }
}

// Rows side by side are one segment; those with odd numbers hold a NaN, an infinity or what rounds to one.
TEST(device_sums_mark_the_rows_of_a_merged_segment) {
  const float bad[] = {__builtin_nanf(""), __builtin_inff(), 65520.0f};
  const std::size_t sizes[] = {5, 1, 0, 700, 3, 0, 33, 2, 1, 1};
  const std::size_t rows = sizeof(sizes) / sizeof(sizes[0]);
  for (std::size_t shift = 0; shift < 16; shift += 2) {
    Memory values(746 * sizeof(float), 2 * shift);
    Memory result(746 * 2, shift, kGuard);
    auto* number = reinterpret_cast<float*>(values.get());
    std::fill(number, number + 746, 1.0f);
    Plan plan;
    std::size_t at = 0;
    for (std::size_t r = 0; r < rows; ++r) {
      if (r % 2 == 1 && sizes[r] > 0) number[at + sizes[r] - 1] = bad[r % 3];
      plan.sources.push_back({reinterpret_cast<std::uint64_t>(number + at), -1, kF32});
      plan.weights.push_back(1.0);
      plan.weights_f32.push_back(1.0f);
      Place dst{reinterpret_cast<std::uint64_t>(result.get() + 2 * at), -1, kF16};
      append_segment(plan, {sizes[r], 0, 1, dst, 1.0, kAccF64});
      at += sizes[r];
    }
    CHECK(plan.segments.size() == 1);
    std::vector<std::uint32_t> flags(rows, 0);
    run(plan, flags.data());
    for (std::size_t r = 0; r < rows; ++r) {
      CHECK_CASE(flags[r] == (r % 2 == 1 && sizes[r] > 0 ? 1u : 0u), std::to_string(r));
    }
    CHECK(result.guards_intact());
  }
}

// For each type half a unit above its largest value, which rounds to infinity; just below it does not.
TEST(device_sums_report_what_rounds_to_infinity) {
  const double limits[] = {0, 0x1.FFFFFFp127, 65520.0, 0x1.FFp127, 0, 61440.0};
  for (std::uint8_t out : {kF32, kF16, kBF16, kF8E5M2}) {
    for (std::uint8_t source : {kF64, kF32}) {
      for (std::uint8_t accumulator : {kAccF32, kAccF64}) {
        if (source == kF64 ? accumulator == kAccF32 : out == kF32) continue;
        for (double at : {limits[out], -limits[out]}) {
          double below = source == kF64 ? std::nextafter(at, 0.0) : std::nextafter(static_cast<float>(at), 0.0f);
          for (double value : {at, below}) {
            // Alone of its kind in the middle of whole chunks.
            std::vector<double> wide(64, 1.0);
            std::vector<float> narrow(64, 1.0f);
            wide[21] = value;
            narrow[21] = static_cast<float>(value);
            Memory result(64 * item_size(out), 0, kGuard);
            const void* pointer = source == kF64 ? static_cast<const void*>(wide.data()) : narrow.data();
            Plan plan;
            plan.sources = {{reinterpret_cast<std::uint64_t>(pointer), -1, source}};
            plan.weights = {1.0};
            plan.weights_f32 = {1.0f};
            Place dst{reinterpret_cast<std::uint64_t>(result.get()), -1, out};
            append_segment(plan, {64, 0, 1, dst, 1.0, accumulator});
            std::uint32_t flag = 0;
            run(plan, &flag);
            CHECK_CASE(flag == (value == at ? 1u : 0u), std::to_string(out) + " " + std::to_string(value));
          }
        }
      }
    }
  }
}

TEST(device_copies_bytes_as_they_are) {
  Random random(5);
  for (std::size_t n : {0u, 1u, 15u, 16u, 17u, 300u, 9001u}) {
    for (std::size_t shift : {0u, 1u, 4u, 8u, 15u}) {
      Memory source(n, shift);
      Memory out(n, shift / 2, kGuard);
      random.fill(source.get(), n, kRaw);
      Plan plan;
      plan.sources = {{reinterpret_cast<std::uint64_t>(source.get()), -1, kRaw}};
      plan.weights = {1.0};
      plan.weights_f32 = {1.0f};
      append_segment(plan, {n, 0, 1, {reinterpret_cast<std::uint64_t>(out.get()), -1, kRaw}, 1.0, kAccF32});
      run(plan, nullptr);
      CHECK(n == 0 || std::memcmp(source.get(), out.get(), n) == 0);
      CHECK(out.guards_intact());
    }
  }
}

TEST(device_sums_are_in_memory_only_and_say_what_failed) {
  Plan plan;
  plan.sources = {{0, 3, kF32}};
  plan.weights = {1.0};
  plan.weights_f32 = {1.0f};
  float result[4] = {};
  append_segment(plan, {4, 0, 1, {reinterpret_cast<std::uint64_t>(result), -1, kF32}, 1.0, kAccF64});
  CHECK(THROWN(sum_table_shape(plan)).kind == ErrorKind::kInvalid);
  plan.sources[0] = {reinterpret_cast<std::uint64_t>(result), -1, kF32};
  emulate::fail_next(cudaErrorIllegalAddress);
  Error error = THROWN(run(plan, nullptr));
  CHECK(error.kind == ErrorKind::kDevice);
  CHECK(std::string(error.what()) == "weighted sum of 1 segments, 1 tiles: an illegal memory access was encountered");
  run(plan, nullptr);  // the error is not blamed on the next call
  CHECK(THROWN(device::synchronize(1, 0)).kind == ErrorKind::kDevice);
}
