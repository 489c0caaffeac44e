// SPDX-License-Identifier: MIT
// weighted_sum on every ISA of this machine against the reference. Sources and destinations end where their memory
// does, so that an access one byte beyond is a sanitizer's report.
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/cpu/probe.h"
#include "check.h"
#include "random_values.h"
#include "reference.h"

using namespace soup;

namespace {

struct Case {
  std::uint8_t source, other, out, accumulator;
  std::size_t count, n, shift;
  int weights;  // 0: equal, a power of two sources; 1: equal; 2: unequal
  bool stream, in_place;
};

std::string text(const Case& c, const std::string& isa) {
  return isa + ": " + std::to_string(c.source) + "," + std::to_string(c.other) + " -> " + std::to_string(c.out) +
         " acc " + std::to_string(c.accumulator) + " count " + std::to_string(c.count) + " n " + std::to_string(c.n) +
         " shift " + std::to_string(c.shift) + " weights " + std::to_string(c.weights) + (c.stream ? " streamed" : "") +
         (c.in_place ? " in place" : "");
}

void check_case(const Case& c, Random& random) {
  std::vector<std::uint8_t> dtypes;
  std::vector<std::unique_ptr<unsigned char[]>> memory;
  std::vector<const void*> sources;
  std::vector<double> weights;
  std::vector<float> weights_f32;
  for (std::size_t k = 0; k < c.count; ++k) {
    dtypes.push_back(k % 3 == 1 ? c.other : c.source);
    memory.emplace_back(new unsigned char[c.shift + c.n * item_size(dtypes[k])]);
    if (random.below(3) == 0) {
      random.fill_finite(memory[k].get() + c.shift, c.n, dtypes[k]);
    } else {
      random.fill(memory[k].get() + c.shift, c.n, dtypes[k]);
    }
    sources.push_back(memory[k].get() + c.shift);
    weights.push_back(c.weights == 2 ? 0.1 + 0.37 * static_cast<double>(k) : 1.0);
    weights_f32.push_back(static_cast<float>(weights[k]));
  }
  WeightedSumArgs args{sources.data(),
                       dtypes.data(),
                       weights.data(),
                       weights_f32.data(),
                       c.count,
                       c.n,
                       c.weights == 2 ? 1.0 : static_cast<double>(c.count),
                       nullptr,
                       c.out,
                       c.accumulator,
                       c.stream};
  Result expected = reference_sum(args);
  std::size_t bytes = expected.bytes.size();
  for (const std::string& isa : available_isas()) {
    std::unique_ptr<unsigned char[]> out(new unsigned char[c.shift + bytes]);
    if (c.in_place) std::memcpy(out.get() + c.shift, sources[0], bytes);
    std::vector<const void*> read = sources;
    if (c.in_place) read[0] = out.get() + c.shift;
    args.sources = read.data();
    args.dst = out.get() + c.shift;
    bool nonfinite = kernels_for(isa).weighted_sum(args);
    CHECK_CASE(nonfinite == expected.nonfinite, text(c, isa));
    CHECK_CASE(bytes == 0 || std::memcmp(out.get() + c.shift, expected.bytes.data(), bytes) == 0, text(c, isa));
  }
}

}  // namespace

TEST(kernels_equal_the_reference_for_all_types) {
  const std::size_t sizes[] = {1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 65, 127, 200};
  const std::size_t counts[] = {1, 2, 3, 4, 8, 16, 17, 18, 33};
  Random random(1);
  for (std::uint8_t source = 0; source < kFloatTypes; ++source) {
    for (std::uint8_t other = 0; other < kFloatTypes; ++other) {
      for (std::uint8_t out = 0; out < kFloatTypes; ++out) {
        for (std::uint8_t accumulator : {kAccF32, kAccF64}) {
          bool wide = source == kF64 || other == kF64 || out == kF64;
          if (wide && accumulator == kAccF32) continue;
          for (int i = 0; i < 12; ++i) {
            Case c{source,
                   other,
                   out,
                   accumulator,
                   random.one_of(counts),
                   random.one_of(sizes),
                   0,
                   i % 3,
                   i % 4 == 3,
                   source == out && i % 2 == 0};
            c.shift = random.below(2) * random.below(9);
            check_case(c, random);
          }
        }
      }
    }
  }
}

TEST(kernels_equal_the_reference_around_blocks) {
  const std::size_t sizes[] = {0, 1023, 1024, 1025, 1087, 2047, 2049, 3100};
  Random random(2);
  for (std::uint8_t dtype = 0; dtype < kFloatTypes; ++dtype) {
    for (std::size_t n : sizes) {
      for (std::size_t shift = 0; shift < 64; shift = shift * 2 + 1) {
        bool stream = shift % 3 != 1;
        check_case({dtype, dtype, dtype, dtype <= kF32 ? kAccF64 : kAccF32, 2, n, shift, 1, stream, false}, random);
      }
    }
  }
}

TEST(kernels_report_what_rounds_to_infinity) {
  // For each type half a unit above its largest value, which rounds to infinity; just below it does not.
  const double limits[] = {0, 0x1.FFFFFFp127, 65520.0, 0x1.FFp127, 0, 61440.0};
  for (std::uint8_t out : {kF32, kF16, kBF16, kF8E5M2}) {
    for (std::uint8_t source : {kF64, kF32}) {
      if (source == kF32 && out == kF32) continue;
      for (double sign : {1.0, -1.0}) {
        double at = sign * limits[out];
        double below = source == kF64 ? std::nextafter(at, 0.0) : std::nextafter(static_cast<float>(at), 0.0f);
        for (double value : {at, below}) {
          double values[3] = {1.0, value, 1.0};
          float narrow[3] = {1.0f, static_cast<float>(value), 1.0f};
          const void* pointer = source == kF64 ? static_cast<const void*>(values) : narrow;
          double weight = 1.0;
          float weight_f32 = 1.0f;
          unsigned char result[12];
          std::uint8_t accumulator = source == kF64 ? kAccF64 : kAccF32;
          WeightedSumArgs args{&pointer, &source, &weight, &weight_f32, 1, 3, 1.0, result, out, accumulator, false};
          CHECK(reference_sum(args).visibly_nonfinite == (value == at));
          for (const std::string& isa : available_isas()) {
            CHECK_CASE(kernels_for(isa).weighted_sum(args) == (value == at), isa + " " + std::to_string(value));
          }
        }
      }
    }
  }
}

TEST(isas_are_named) {
  CHECK(available_isas().back() == "generic");
  CHECK(kernels_for("auto").name == available_isas().front());
  for (const std::string& isa : available_isas()) CHECK(kernels_for(isa).name == isa);
  CHECK(THROWN(kernels_for("avx3")).kind == ErrorKind::kIsa);
  CHECK(THROWN(kernels_for("")).kind == ErrorKind::kIsa);
}

TEST(bandwidth_is_measured) {
  for (int threads : {1, 3}) {
    Bandwidth found = measure_bandwidth(1u << 18, threads);
    CHECK(found.read > 0 && found.mix > 0);
  }
}
