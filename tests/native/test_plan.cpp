// SPDX-License-Identifier: MIT
// How plans are built: neighbours become one segment and stay rows of their own; overlaps are found and named by row,
// against every pair of rows looked at one by one.
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "../../csrc/io/plan.h"
#include "check.h"
#include "models.h"
#include "random_values.h"

using namespace soup;

namespace {

void append(Plan& plan, std::uint64_t n, const std::vector<Place>& sources, Place dst, double weight = 1.0,
            double divisor = 1.0) {
  for (const Place& source : sources) {
    plan.sources.push_back(source);
    plan.weights.push_back(weight);
    plan.weights_f32.push_back(static_cast<float>(weight));
  }
  append_segment(plan, {n, 0, sources.size(), dst, divisor, kAccF64});
}

Place f32_at(std::uint64_t element) { return {4096 + 4 * element, -1, kF32}; }

}  // namespace

TEST(plan_merges_rows_that_go_on) {
  Plan plan;
  append(plan, 10, {f32_at(0), f32_at(100)}, f32_at(200));
  append(plan, 0, {f32_at(10), f32_at(110)}, f32_at(210));
  append(plan, 5, {f32_at(10), f32_at(110)}, f32_at(210));
  CHECK(plan.segments.size() == 1 && plan.segments[0].n == 15 && plan.sources.size() == 2);
  append(plan, 5, {f32_at(16), f32_at(115)}, f32_at(215));       // a gap in one source
  append(plan, 5, {f32_at(21), f32_at(120)}, f32_at(221));       // in the destination
  append(plan, 5, {f32_at(26), f32_at(125)}, f32_at(226), 2.0);  // another weight
  append(plan, 5, {f32_at(31), f32_at(130)}, f32_at(231), 2.0, 3.0);
  append(plan, 5, {f32_at(36)}, f32_at(236), 2.0, 3.0);
  append(plan, 5, {{f32_at(41).at, 3, kF32}}, f32_at(241), 2.0, 3.0);
  append(plan, 5, {{f32_at(46).at, 3, kF16}}, f32_at(246), 2.0, 3.0);
  CHECK(plan.segments.size() == 8);
  CHECK(plan.row_ends == (std::vector<std::uint64_t>{10, 10, 15, 5, 5, 5, 5, 5, 5, 5}));
  RowRange rows = rows_of(plan, 0);
  CHECK(rows.begin == 0 && rows.end == 3);
  CHECK(row_at(plan, rows, 0) == 0 && row_at(plan, rows, 9) == 0 && row_at(plan, rows, 10) == 2);
  CHECK(row_start(plan, rows, 0) == 0 && row_start(plan, rows, 2) == 10);
  CHECK(rows_of(plan, 7).begin == 9 && rows_of(plan, 7).end == 10 && row_at(plan, rows_of(plan, 7), 4) == 9);
}

TEST(plan_counts_bytes_and_buffers) {
  Plan plan;
  append(plan, 100, {{0, 3, kF32}, {0, -1, kF16}}, {0, 4, kBF16});
  CHECK(plan_bytes(plan) == 100 * (4 + 2 + 2));
  CHECK(plan_minimum_buffer(plan) == 64 * (4 + 2) + 2 * 64);
  Plan memory;
  append(memory, 100, {f32_at(0)}, f32_at(100));
  CHECK(plan_minimum_buffer(memory) == 0);
  CHECK(plan_minimum_buffer({}) == 0 && plan_bytes({}) == 0);
}

TEST(plan_finds_overlaps_by_row) {
  Random random(11);
  int found_some = 0;
  for (int round = 0; round < 3000; ++round) {
    std::size_t rows = 1 + random.below(5);
    std::size_t count = 1 + random.below(3);
    std::vector<std::uint64_t> sizes(rows);
    for (std::uint64_t& n : sizes) n = random.below(7);
    auto places = [&] {
      std::vector<std::uint64_t> at(rows);
      std::uint64_t next = random.below(60);
      bool side_by_side = random.below(2) == 0;
      for (std::size_t r = 0; r < rows; ++r) {
        at[r] = side_by_side ? next : random.below(80);
        next += sizes[r];
      }
      return at;
    };
    std::vector<std::uint64_t> written = places();
    std::vector<std::vector<std::uint64_t>> read;
    for (std::size_t k = 0; k < count; ++k) read.push_back(random.below(3) == 0 ? written : places());
    Plan plan;
    for (std::size_t r = 0; r < rows; ++r) {
      std::vector<Place> sources;
      for (std::size_t k = 0; k < count; ++k) sources.push_back(f32_at(read[k][r]));
      append(plan, sizes[r], sources, f32_at(written[r]));
    }
    auto meet = [&](std::size_t a, std::uint64_t at, std::size_t b, std::uint64_t other) {
      return sizes[a] > 0 && sizes[b] > 0 && at < other + sizes[b] && other < at + sizes[a];
    };
    std::set<std::pair<std::int64_t, std::int64_t>> both, crossed;
    for (std::size_t a = 0; a < rows; ++a) {
      for (std::size_t b = 0; b < rows; ++b) {
        if (a != b && meet(a, written[a], b, written[b])) both.emplace(a, b);
        for (std::size_t k = 0; k < count; ++k) {
          bool exact = a == b && written[a] == read[k][b];
          if (!exact && meet(a, written[a], b, read[k][b])) crossed.emplace(a, b);
        }
      }
    }
    const auto& clashes = both.empty() ? crossed : both;
    auto found = find_overlap(plan);
    bool right = clashes.empty() ? found.first == -1 && found.second == -1 : clashes.count(found) == 1;
    CHECK_CASE(right, "round " + std::to_string(round));
    found_some += clashes.empty() ? 0 : 1;
  }
  CHECK(found_some > 300 && found_some < 2900);
}

TEST(plan_ignores_files_in_overlaps) {
  Plan plan;
  append(plan, 10, {{0, 3, kF32}}, {0, 3, kF32});
  append(plan, 10, {{0, 3, kF32}}, {0, 3, kF32});
  CHECK(find_overlap(plan).first == -1);
}
