// SPDX-License-Identifier: MIT
// Runs the generic and the NEON kernels on the same random bits: every pair of types, odd sizes, both accumulators,
// equal and unequal weights, shifted addresses, streamed and plain stores. Prints the first difference, exits 1.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "../../csrc/cpu/tables.h"

namespace {

std::uint64_t state = 0x9E3779B97F4A7C15ull;

std::uint64_t next_bits() {  // xorshift64*
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return state * 0x2545F4914F6CDD1Dull;
}

// Random bits, but every third element of a moderate exponent, so that sums are finite, and every seventh a subnormal.
void fill(std::vector<unsigned char>& bytes, std::uint8_t dtype) {
  for (unsigned char& b : bytes) b = static_cast<unsigned char>(next_bits() >> 40);
  std::size_t size = soup::item_size(dtype);
  static const unsigned char one[] = {0x3F, 0x3F, 0x3C, 0x3F, 0x38, 0x3C};
  for (std::size_t i = 0; i + size <= bytes.size(); i += size) {
    unsigned char* top = &bytes[i + size - 1];
    std::size_t element = i / size;
    if (element % 3 == 0) *top = static_cast<unsigned char>((*top & 0x80) | one[dtype]);
    if (element % 7 == 1) *top &= 0x80;
  }
}

struct Case {
  std::uint8_t source, other, out, accumulator;
  std::size_t count, n, shift;
  bool weighted, stream;
};

bool same(const Case& c) {
  std::vector<std::uint8_t> dtypes(c.count);
  std::vector<std::vector<unsigned char>> data(c.count);
  std::vector<const void*> pointers(c.count);
  std::vector<double> weights(c.count);
  std::vector<float> weights_f32(c.count);
  for (std::size_t k = 0; k < c.count; ++k) {
    dtypes[k] = k % 3 == 1 ? c.other : c.source;
    data[k].resize(c.n * soup::item_size(dtypes[k]) + c.shift);
    fill(data[k], dtypes[k]);
    pointers[k] = data[k].data() + c.shift;
    weights[k] = c.weighted ? 0.1 + 0.37 * static_cast<double>(k) : 1.0;
    weights_f32[k] = static_cast<float>(weights[k]);
  }
  std::size_t bytes = c.n * soup::item_size(c.out);
  std::vector<unsigned char> outputs[2] = {std::vector<unsigned char>(bytes + 64 + c.shift, 0xAA),
                                           std::vector<unsigned char>(bytes + 64 + c.shift, 0xAA)};
  const soup::KernelTable* tables[2] = {&soup::kGenericKernels, &soup::kNeonKernels};
  bool nonfinite[2] = {};
  for (int t = 0; t < 2; ++t) {
    soup::WeightedSumArgs args;
    args.sources = pointers.data();
    args.dtypes = dtypes.data();
    args.weights_f64 = weights.data();
    args.weights_f32 = weights_f32.data();
    args.count = c.count;
    args.n = c.n;
    args.divisor = c.weighted ? 1.0 : static_cast<double>(c.count);
    args.dst = outputs[t].data() + c.shift;
    args.dst_dtype = c.out;
    args.accumulator = c.accumulator;
    args.stream = c.stream;
    nonfinite[t] = tables[t]->weighted_sum(args);
  }
  return outputs[0] == outputs[1] && nonfinite[0] == nonfinite[1];
}

}  // namespace

int main() {
  const std::size_t sizes[] = {0, 1, 2, 3, 15, 16, 17, 31, 33, 64, 65, 1023, 1025, 2100};
  std::size_t cases = 0;
  for (std::uint8_t source = 0; source < soup::kFloatTypes; ++source) {
    for (std::uint8_t other = 0; other < soup::kFloatTypes; ++other) {
      for (std::uint8_t out = 0; out < soup::kFloatTypes; ++out) {
        bool narrow = soup::item_size(source) <= 2 && soup::item_size(other) <= 2 && soup::item_size(out) <= 2;
        for (std::size_t n : sizes) {
          for (int weighted = 0; weighted < 2; ++weighted) {
            std::size_t count = n == 65 ? 19 : 3;
            Case c{source,
                   other,
                   out,
                   narrow ? soup::kAccF32 : soup::kAccF64,
                   count,
                   n,
                   n % 2 == 0 ? 0u : static_cast<unsigned>(n) % 7u,
                   weighted == 1,
                   n >= 1000};
            ++cases;
            if (same(c)) continue;
            std::printf("differs: %d,%d -> %d, n = %zu, weighted = %d\n", source, other, out, n, weighted);
            return 1;
          }
        }
      }
    }
  }
  std::printf("%zu cases agree\n", cases);
  return 0;
}
