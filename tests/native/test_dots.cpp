// SPDX-License-Identifier: MIT
// Inner products on every ISA of this machine against the contract as a plain loop, and against long double.
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/cpu/dots.h"
#include "check.h"
#include "dot_models.h"

using namespace soup;

namespace {

bool go_on() { return true; }

std::vector<double> run(const DotModel& model, const std::string& isa, int threads) {
  std::vector<double> out(model.results(), 77.0);
  CHECK(run_dots(model.plan(), kernels_for(isa), threads, go_on, out.data()));
  return out;
}

bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0);
}

void check_all(const DotSpec& spec, std::uint64_t seed) {
  DotModel model(spec, seed);
  std::vector<double> expected = model.expected();
  for (const std::string& isa : available_isas())
    CHECK_CASE(same_bits(run(model, isa, 2), expected), isa + ": " + spec.name());
}

}  // namespace

TEST(dots_follow_the_contract_for_all_pairs_of_types) {
  const std::vector<std::uint64_t> sizes = {0, 1, 2, 3, 31, 32, 33, 127, 255, 256, 257, 511, 513, 1000, 1025, 4097};
  for (std::uint8_t gradient = 0; gradient < kFloatTypes; ++gradient) {
    for (std::uint8_t source = 0; source < kFloatTypes; ++source) {
      for (bool any_bits : {false, true}) {
        std::size_t shift = gradient == source ? 1 : source % 3 * item_size(source);
        check_all({sizes, {gradient}, {source}, 3, shift, any_bits}, gradient * 10u + source);
      }
    }
  }
}

TEST(dots_follow_the_contract_for_mixed_types_and_many_sources) {
  const std::vector<std::uint8_t> all = {kF32, kBF16, kF16, kF64, kF8E4M3, kF8E5M2, kBF16};
  for (std::size_t count : {1u, 2u, 7u, 8u, 9u, 21u}) {
    check_all({{700, 3, 0, 300}, {kF32, kBF16, kF64}, all, count, 0, false}, count);
    check_all({{700, 3, 0, 300}, {kF32, kBF16, kF64}, all, count, 3, true}, count);
  }
}

TEST(dots_follow_the_contract_for_several_tiles) {
  check_all({{kDotTile, kDotTile - 1, kDotTile + 1, 3 * kDotTile + 17}, {kF32, kBF16}, {kBF16, kF32}, 2, 0, false}, 1);
  check_all({{2 * kDotTile + 300, 5, 2 * kDotTile}, {kF64}, {kF64, kF8E5M2}, 2, 0, true}, 2);
}

TEST(dots_follow_the_contract_for_more_tiles_than_sums) {
  check_all({{(kDotSums + 2) * kDotTile + 5}, {kF8E5M2}, {kF8E4M3}, 1, 0, false}, 3);
}

TEST(dots_of_several_threads_are_the_same) {
  DotModel model({{200000, 7, 0, 90001, 16384}, {kF32}, {kBF16, kF32}, 5, 0, false}, 4);
  std::vector<double> expected = run(model, "generic", 1);
  for (int threads : {1, 2, 3, 8}) CHECK(same_bits(run(model, available_isas().front(), threads), expected));
}

TEST(dots_are_as_exact_as_they_promise) {
  for (std::uint8_t type : {kF64, kF32, kBF16}) {
    DotModel model({{1, 1000, 40000, 300000}, {type}, {type}, 1, 0, false}, 5);
    std::vector<double> found = run(model, available_isas().front(), 2);
    for (std::size_t s = 0; s < found.size(); ++s) {
      long double sum = 0, size = 0;
      std::uint64_t n = model.plan().segments[s].n;
      model.for_each(s, 0, 0, n, [&](double g, double x) {
        sum += static_cast<long double>(g) * x;
        size += std::fabs(static_cast<long double>(g) * x);
      });
      long double bound =
          (80 + n / kDotTile / kDotSums) * 0x1p-53L * size + static_cast<long double>(n) * 0x1p-64L * size;
      CHECK_CASE(std::fabs(found[s] - sum) <= bound, std::to_string(type) + " " + std::to_string(n));
    }
  }
}

TEST(dots_are_never_minus_zero) {
  // The product underflows to -0.
  double tiny = 0x1p-1000, minus = -0x1p-1000;
  DotPlan plan;
  plan.count = 1;
  plan.append(1, reinterpret_cast<std::uint64_t>(&tiny), kF64);
  plan.append_source(reinterpret_cast<std::uint64_t>(&minus), kF64);
  for (const std::string& isa : available_isas()) {
    double out = 1;
    CHECK(run_dots(plan, kernels_for(isa), 1, go_on, &out));
    CHECK_CASE(out == 0.0 && !std::signbit(out), isa);
  }
}

TEST(dots_are_the_same_bits_on_every_machine) {
  // Taken on x86-64 with AVX-512: a change of these is a change of the contract in kernels.h.
  const std::uint64_t hashes[] = {5478224132240473444u, 900175698624498060u, 8941268781490678207u,
                                  7754818021641071039u};
  const std::uint8_t types[] = {kF64, kF32, kF16, kBF16};
  for (std::size_t i = 0; i < 4; ++i) {
    DotModel model({{40000, 1000, 1}, {types[i], kF32}, {types[i], kBF16}, 3, 0, false}, 6);
    for (const std::string& isa : available_isas()) {
      std::uint64_t hash = 0xCBF29CE484222325ull;
      for (double x : run(model, isa, 2)) hash = (hash ^ bit_cast<std::uint64_t>(x)) * 0x100000001B3ull;
      CHECK_CASE(hash == hashes[i], isa + " " + std::to_string(types[i]) + " " + std::to_string(hash));
    }
  }
}

TEST(dots_stop_when_told_to) {
  // The same memory again and again: long enough to be asked.
  std::vector<std::uint16_t> memory(4000000);
  auto at = reinterpret_cast<std::uint64_t>(memory.data());
  DotPlan plan;
  plan.count = 60;
  plan.append(memory.size(), at, kBF16);
  for (int k = 0; k < 60; ++k) plan.append_source(at, kBF16);
  std::vector<double> out(60);
  CHECK(!run_dots(plan, kernels_for("generic"), 2, [] { return false; }, out.data()));
}

TEST(dots_of_nothing_are_nothing) {
  double out = 77;
  CHECK(run_dots(DotPlan{}, kernels_for("auto"), 2, go_on, &out));
  CHECK(out == 77);
  DotPlan empty;
  empty.count = 1;
  empty.append(0, 0, kF32);
  empty.append_source(0, kF32);
  CHECK(run_dots(empty, kernels_for("auto"), 2, go_on, &out));
  CHECK(out == 0);
}
