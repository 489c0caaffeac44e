// SPDX-License-Identifier: MIT
// The short ways of scalar.h against its long ones: the same bits. (All 2^32 values of f32 were tried once; here a part
// of them in each run, and all of what is near a tie.)
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "../../csrc/scalar.h"
#include "check.h"
#include "random_values.h"

using namespace soup;

namespace {

bool rounds_alike(float x, double exact) {
  return f32_to_bf16(x) == f64_to_bf16(exact) && f32_to_f16(x) == f64_to_f16(exact) &&
         f32_to_f8e5m2(x) == f64_to_f8e5m2(exact) && f32_to_f8e4m3(x) == f64_to_f8e4m3(exact);
}

// Or it is not certain to: where it is small, and where it is no finite number, as on the way to the largest.
template <class T>
bool divides_alike(T a, T divisor) {
  T reciprocal = T(1) / divisor;
  bool once = divides_once(divisor);
  T quick = quotient(a, divisor, reciprocal);
  if (!once) quick = corrected(quick, a, divisor, reciprocal);
  T exact = a / divisor;
  T least = static_cast<T>(least_quotient(sizeof(T) == 8, once));
  if (!is_quotient(quick, least)) return std::fabs(exact) <= least;
  if (!std::isfinite(quick)) return !(std::fabs(exact) < std::numeric_limits<T>::max() / 2);
  return quick == exact && std::signbit(quick) == std::signbit(exact);
}

}  // namespace

TEST(roundings_of_f32_equal_those_of_f64) {
  std::uint64_t wrong = 0;
  for (std::uint64_t i = 0; i < 1ull << 32; i += 1009) {
    float x = bit_cast<float>(static_cast<std::uint32_t>(i));
    wrong += rounds_alike(x, x) ? 0 : 1;
  }
  // Every tie of each type lies among the numbers with 12 bits of mantissa; so do their neighbours, but for one bit.
  for (std::uint32_t top = 0; top < 1u << 21; ++top) {
    for (std::uint32_t off : {0u, 1u, ~0u}) {
      float x = bit_cast<float>((top << 11) + off);
      wrong += rounds_alike(x, x) ? 0 : 1;
    }
  }
  CHECK_CASE(wrong == 0, std::to_string(wrong));
}

TEST(roundings_of_f64_by_way_of_an_odd_f32_equal_those_at_once) {
  Random random(1);
  std::uint64_t wrong = 0;
  for (int i = 0; i < 300000; ++i) {
    // Exponents about those of all types, few bits set: ties and their neighbours.
    std::uint64_t exponent = 1023 - 170 + random.below(320);
    std::uint64_t cut = random.below(53);
    std::uint64_t mantissa = (random.bits() & 0x000FFFFFFFFFFFFFull) >> cut << cut;
    std::uint64_t bits = random.below(2) << 63 | exponent << 52 | mantissa;
    for (std::uint64_t near : {bits, bits + 1, bits - 1, random.bits()}) {
      double x = bit_cast<double>(near);
      wrong += rounds_alike(f64_to_odd_f32(x), x) ? 0 : 1;
      bool done = true;
      float quick = quick_odd_f32(x, kBeyondF32, done);
      wrong += done && !rounds_alike(quick, x) ? 1 : 0;
    }
  }
  CHECK_CASE(wrong == 0, std::to_string(wrong));
}

TEST(quick_quotients_equal_divisions) {
  Random random(2);
  std::uint64_t wrong = 0;
  for (double divisor : {1.0, 2.0, 3.0, 5.0, 7.0, 8.0, 11.0, 24.0, 40.0, 72.0, 997.0, 65535.0, 1048575.0, 1048576.0}) {
    float narrow = static_cast<float>(divisor);
    CHECK(divides_once(divisor));
    for (int i = 0; i < 100000; ++i) {
      wrong += divides_alike(bit_cast<float>(static_cast<std::uint32_t>(random.bits() >> 20)), narrow) ? 0 : 1;
      // Nearly a tie: a last bit and a half times the divisor.
      double tie = bit_cast<double>((random.bits() & 0x800FFFFFFFFFFFFFull) | random.below(2000) << 52) * divisor;
      for (double a : {tie, std::nextafter(tie, 0.0), bit_cast<double>(random.bits())}) {
        wrong += divides_alike(a, divisor) ? 0 : 1;
      }
    }
    // Small numbers, where ties occur, and both zeros.
    for (std::uint32_t i = 0; i < 100000; ++i) {
      wrong += divides_alike(bit_cast<float>(i), narrow) ? 0 : 1;
      wrong += divides_alike(bit_cast<float>(i | 0x80000000u), narrow) ? 0 : 1;
    }
  }
  CHECK_CASE(wrong == 0, std::to_string(wrong));
}

// Of mantissas that are hard: just above and below a power of two, few bits set, the product of the divisor and what
// is nearly a tie between quotients.
TEST(quick_quotients_of_any_divisor_equal_divisions) {
  Random random(3);
  std::uint64_t wrong = 0;
  for (int i = 0; i < 2000; ++i) {
    std::uint64_t mantissa = random.bits() & 0x000FFFFFFFFFFFFFull;
    if (i % 4 == 1) mantissa >>= random.below(53);
    if (i % 4 == 2) mantissa = ~(mantissa >> random.below(53)) & 0x000FFFFFFFFFFFFFull;
    if (i % 4 == 3) mantissa = mantissa >> 40 << 40;
    double divisor = bit_cast<double>((1023 - 19 + random.below(38)) << 52 | mantissa);
    if (divides_once(divisor)) continue;
    CHECK(has_quotients(divisor));
    auto narrow = static_cast<float>(divisor);
    for (int j = 0; j < 300; ++j) {
      std::uint64_t exponent = j % 2 == 0 ? random.below(2000) : 1023 - 90 + random.below(180);
      double half = bit_cast<double>((random.bits() & 0x800FFFFFFFFFFFFFull) | exponent << 52);
      auto half_narrow = static_cast<float>(bit_cast<double>(bit_cast<std::uint64_t>(half) & ~0x0FFFFFFFull));
      double tie = half * divisor;
      float tie_narrow = half_narrow * narrow;
      for (double a : {tie, std::nextafter(tie, 0.0), std::nextafter(tie, 1e308), bit_cast<double>(random.bits())}) {
        wrong += divides_alike(a, divisor) ? 0 : 1;
      }
      for (float a : {tie_narrow, std::nextafter(tie_narrow, 0.0f), std::nextafter(tie_narrow, 1e38f), half_narrow}) {
        wrong += divides_alike(a, narrow) ? 0 : 1;
      }
    }
    for (float a : {0.0f, -0.0f, 0x1p-149f, -0x1p-140f}) wrong += divides_alike(a, narrow) ? 0 : 1;
  }
  CHECK_CASE(wrong == 0, std::to_string(wrong));
}

TEST(quotients_by_what_is_out_of_range_are_not_quick) {
  for (double divisor : {0.0, -1.0, -0.5, 0x1p21, 0x1p-21, HUGE_VAL, std::nan("")}) CHECK(!has_quotients(divisor));
}
