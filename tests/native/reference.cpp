// SPDX-License-Identifier: MIT
#include "reference.h"

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../../csrc/scalar.h"

namespace {

using namespace soup;

template <class T>
T widened(std::uint8_t dtype, const void* values, std::size_t i) {
  const char* p = static_cast<const char*>(values) + i * item_size(dtype);
  switch (dtype) {
    case kF64:
      return static_cast<T>(load_bits<double>(p));
    case kF32:
      return load_bits<float>(p);
    case kF16:
      return f16_to_f32(load_bits<std::uint16_t>(p));
    case kBF16:
      return bf16_to_f32(load_bits<std::uint16_t>(p));
    case kF8E4M3:
      return f8e4m3_to_f32(load_bits<std::uint8_t>(p));
    default:
      return f8e5m2_to_f32(load_bits<std::uint8_t>(p));
  }
}

template <class T>
T quotient(const WeightedSumArgs& args, std::size_t i, T scale) {
  T sum = 0;
  for (std::size_t k = 0; k < args.count; ++k) {
    T weight = (sizeof(T) == 4 ? static_cast<T>(args.weights_f32[k]) : static_cast<T>(args.weights_f64[k])) * scale;
    T x = widened<T>(args.dtypes[k], args.sources[k], i);
    sum = k == 0 ? weight * x : std::fma(weight, x, sum);
  }
  return sum / static_cast<T>(args.divisor);
}

template <class T>
double mean(const WeightedSumArgs& args, std::size_t i) {
  T result = quotient<T>(args, i, T(1));
  if (std::isfinite(result)) return result;
  const T down = sizeof(T) == 4 ? T(0x1p-16) : T(0x1p-64);
  return quotient<T>(args, i, down) / down;
}

template <class Bits>
void put(std::vector<unsigned char>& bytes, std::size_t i, Bits value) {
  std::memcpy(bytes.data() + i * sizeof(value), &value, sizeof(value));
}

void store(std::vector<unsigned char>& bytes, std::size_t i, std::uint8_t dtype, double value) {
  switch (dtype) {
    case kF64:
      return put(bytes, i, canonical_f64(value));
    case kF32:
      return put(bytes, i, f64_to_f32(value));
    case kF16:
      return put(bytes, i, f64_to_f16(value));
    case kBF16:
      return put(bytes, i, f64_to_bf16(value));
    case kF8E4M3:
      return put(bytes, i, f64_to_f8e4m3(value));
    default:
      return put(bytes, i, f64_to_f8e5m2(value));
  }
}

}  // namespace

Result reference_sum(const WeightedSumArgs& args) {
  Result result{std::vector<unsigned char>(args.n * item_size(args.dst_dtype)), false, false};
  for (std::size_t i = 0; i < args.n; ++i) {
    double value = args.accumulator == kAccF32 ? mean<float>(args, i) : mean<double>(args, i);
    store(result.bytes, i, args.dst_dtype, value);
    bool visible = !std::isfinite(widened<double>(args.dst_dtype, result.bytes.data(), i));
    result.visibly_nonfinite |= visible;
    result.nonfinite |= visible || !std::isfinite(value);
  }
  return result;
}
