// SPDX-License-Identifier: MIT
// Inner products of the device, emulated, against the CPU's: to the bit.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/cpu/dots.h"
#include "../../csrc/device.h"
#include "../../csrc/io/dot_table.h"
#include "check.h"
#include "emulate_runtime.h"
#include "dot_models.h"

using namespace soup;

namespace {

std::vector<double> on_device(const DotModel& model) {
  DotTableShape shape = dot_table_shape(model.plan());
  std::unique_ptr<unsigned char[]> table(new unsigned char[shape.bytes]);
  pack_dot_table(model.plan(), shape, table.get());
  std::vector<double> scratch(std::size_t{shape.tiles} * shape.count, 77.0), out(model.results(), 77.0);
  device::load_kernels(0);
  std::size_t loaded = emulate::loaded();
  device::dots(0, 0, table.get(), shape, scratch.data(), out.data());
  CHECK(emulate::loaded() == loaded);
  device::synchronize(0, 0);
  return out;
}

void check_case(const DotSpec& spec, std::uint64_t seed) {
  DotModel model(spec, seed);
  std::vector<double> expected(model.results(), 78.0);
  CHECK(run_dots(model.plan(), kernels_for("auto"), 1, [] { return true; }, expected.data()));
  std::vector<double> found = on_device(model);
  bool same = found.empty() || std::memcmp(found.data(), expected.data(), found.size() * sizeof(double)) == 0;
  CHECK_CASE(same, spec.name());
}

}  // namespace

TEST(cuda_dots_are_those_of_the_cpu_for_all_sizes) {
  check_case({{0, 1, 2, 3, 31, 32, 33, 127, 255, 256, 257, 511, 513, 1000, 4097}, {kF32}, {kBF16}, 5, 0, false}, 1);
}

TEST(cuda_dots_are_those_of_the_cpu_for_all_pairs_of_types) {
  for (std::uint8_t gradient = 0; gradient < kFloatTypes; ++gradient) {
    for (std::uint8_t source = 0; source < kFloatTypes; ++source) {
      // Four at once and one alone.
      check_case({{770}, {gradient}, {source}, 5, 0, false}, gradient * 10u + source);
    }
    check_case({{1, 3, 300}, {gradient}, {kBF16}, 5, 0, true}, gradient);
    check_case({{1, 3, 300}, {kF32}, {gradient}, 5, 0, true}, gradient);
  }
}

TEST(cuda_dots_are_those_of_the_cpu_at_any_alignment) {
  const std::vector<std::uint64_t> sizes = {7, 300};
  for (std::uint8_t type = 0; type < kFloatTypes; ++type) {
    // Aligned to elements, and here and there to 16 bytes; then not even to elements.
    check_case({sizes, {type}, {kBF16}, 2, std::max(item_size(type), item_size(kBF16)), false}, type);
    check_case({sizes, {kF32}, {type}, 2, std::max(item_size(type), item_size(kF32)), false}, type);
    check_case({sizes, {kF32}, {type}, 2, 1, false}, type);
  }
  check_case({sizes, {kF32}, {kBF16}, 13, 4, true}, 1);
}

TEST(cuda_dots_are_those_of_the_cpu_for_mixed_types_and_any_number_of_sources) {
  const std::vector<std::uint8_t> all = {kF32, kBF16, kBF16, kBF16, kBF16, kBF16, kF16, kF64, kF8E4M3, kF8E5M2};
  for (std::size_t count : {1u, 3u, 4u, 13u}) {
    check_case({{700, 3, 0, 300}, {kF32, kBF16, kF64}, all, count, 0, false}, count);
    check_case({{700, 3, 0, 300}, {kF32, kBF16, kF64}, {kBF16}, count, 2, true}, count);
  }
}

TEST(cuda_dots_are_those_of_the_cpu_for_several_tiles) {
  check_case({{kDotTile, kDotTile - 1, kDotTile + 1, 3 * kDotTile + 17}, {kF32, kBF16}, {kBF16, kF32}, 5, 0, false}, 1);
  check_case({{2 * kDotTile + 300, 5, 2 * kDotTile}, {kF64}, {kF64, kF8E5M2}, 2, 0, true}, 2);
}

TEST(cuda_dots_of_more_tiles_than_sums_are_those_of_the_cpu) {
  check_case({{(kDotSums + 2) * kDotTile + 5}, {kF8E5M2}, {kF8E4M3}, 1, 0, false}, 3);
}

TEST(cuda_dots_of_nothing_are_nothing) {
  check_case({{}, {kF32}, {kF32}, 3, 0, false}, 1);
  check_case({{4, 5}, {kF32}, {kF32}, 0, 0, false}, 1);
  check_case({{0, 0}, {kF32}, {kF32}, 3, 0, false}, 1);
}

TEST(cuda_dots_that_are_too_many_are_refused) {
  DotPlan plan;
  plan.count = 1;
  plan.append(std::uint64_t{1} << 47, 0, kF32);
  plan.append_source(0, kF32);
  Error error = THROWN(dot_table_shape(plan));
  CHECK(error.kind == ErrorKind::kInvalid);
  CHECK_CASE(std::string(error.what()).find("8589934592 tiles") != std::string::npos, error.what());
}
