// SPDX-License-Identifier: MIT
// strided_copy against a loop over all indices, in memory that ends where the last element does.
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "../../csrc/cpu/strided.h"
#include "check.h"
#include "random_values.h"

using namespace soup;

namespace {

using Sizes = std::vector<std::uint64_t>;

std::uint64_t span(const Sizes& shape, const Sizes& strides) {
  std::uint64_t last = 0;
  for (std::size_t d = 0; d < shape.size(); ++d) {
    if (shape[d] == 0) return 0;
    last += (shape[d] - 1) * strides[d];
  }
  return last + 1;
}

void naive_copy(char* dst, const Sizes& dst_strides, const char* src, const Sizes& src_strides, const Sizes& shape,
                std::size_t item, std::size_t d = 0) {
  if (d == shape.size()) {
    std::memcpy(dst, src, item);
    return;
  }
  for (std::uint64_t i = 0; i < shape[d]; ++i) {
    naive_copy(dst + i * dst_strides[d] * item, dst_strides, src + i * src_strides[d] * item, src_strides, shape, item,
               d + 1);
  }
}

// Strides in a random order of the dimensions, sometimes with gaps.
Sizes laid_out(const Sizes& shape, Random& random) {
  std::vector<std::size_t> order;
  for (std::size_t d = 0; d < shape.size(); ++d) order.insert(order.begin() + random.below(d + 1), d);
  Sizes strides(shape.size());
  std::uint64_t reached = 1;
  for (std::size_t d : order) {
    strides[d] = reached + random.below(2) * random.below(4);
    reached += (shape[d] - 1) * strides[d];
  }
  return strides;
}

void check_layout(const Sizes& shape, const Sizes& dst_strides, const Sizes& src_strides, std::size_t item,
                  Random& random) {
  std::uint64_t dst_at = random.below(20);
  std::uint64_t src_at = random.below(20);
  std::uint64_t dst_bytes = dst_at + span(shape, dst_strides) * item;
  std::uint64_t src_bytes = src_at + span(shape, src_strides) * item;
  std::unique_ptr<char[]> dst(new char[dst_bytes]), expected(new char[dst_bytes]), src(new char[src_bytes]);
  for (std::uint64_t i = 0; i < src_bytes; ++i) src[i] = static_cast<char>(random.bits());
  std::memset(dst.get(), 0x55, dst_bytes);
  std::memset(expected.get(), 0x55, dst_bytes);
  naive_copy(expected.get() + dst_at, dst_strides, src.get() + src_at, src_strides, shape, item);
  strided_copy({dst.get(), dst_bytes, dst_at, dst_strides}, {src.get(), src_bytes, src_at, src_strides}, shape, item);
  std::string what = "item " + std::to_string(item) + " shape";
  for (std::uint64_t n : shape) what += " " + std::to_string(n);
  CHECK_CASE(std::memcmp(dst.get(), expected.get(), dst_bytes) == 0, what);
}

const std::size_t kItems[] = {1, 2, 4, 8, 16};

}  // namespace

TEST(strided_copies_equal_a_plain_loop) {
  const std::uint64_t sizes[] = {1, 1, 2, 3, 5, 12, 17, 40};
  Random random(3);
  for (int i = 0; i < 600; ++i) {
    Sizes shape;
    std::uint64_t elements = 1;
    for (std::uint64_t rank = random.below(6); shape.size() < rank && elements < 5000; elements *= shape.back()) {
      shape.push_back(random.one_of(sizes));
    }
    Sizes src = laid_out(shape, random);
    for (std::uint64_t& stride : src) stride = random.below(6) == 0 ? random.below(2) : stride;
    check_layout(shape, laid_out(shape, random), src, random.one_of(kItems), random);
  }
}

TEST(strided_transposes_equal_a_plain_loop) {
  Random random(4);
  for (std::size_t item : kItems) {
    for (const Sizes& shape : {Sizes{300, 270}, Sizes{11, 200}, Sizes{200, 11}, Sizes{12, 12}, Sizes{33, 257}}) {
      check_layout(shape, {shape[1], 1}, {1, shape[0]}, item, random);
      check_layout(shape, {1, shape[0]}, {shape[1] + 3, 1}, item, random);
      check_layout(shape, {2 * shape[1], 2}, {3, 3 * shape[0]}, item, random);
    }
  }
}

TEST(strided_copies_that_do_not_fit_are_refused) {
  const std::uint64_t huge = ~std::uint64_t{0};
  std::vector<char> dst(100), src(100);
  auto kind = [&](std::uint64_t at, Sizes strides, Sizes shape, std::uint64_t item, bool as_dst) {
    StridedSide fits{as_dst ? src.data() : dst.data(), 100, 0, Sizes(shape.size(), as_dst ? 0 : 1)};
    StridedSide hostile{as_dst ? dst.data() : src.data(), 100, at, std::move(strides)};
    return THROWN(strided_copy(as_dst ? hostile : fits, as_dst ? fits : hostile, shape, item)).kind;
  };
  for (bool as_dst : {true, false}) {
    CHECK(kind(0, {1}, {101}, 1, as_dst) == ErrorKind::kInvalid);
    CHECK(kind(99, {1}, {1}, 2, as_dst) == ErrorKind::kInvalid);
    CHECK(kind(huge, {1}, {1}, 1, as_dst) == ErrorKind::kInvalid);
    CHECK(kind(huge - 1, {1}, {3}, 1, as_dst) == ErrorKind::kInvalid);
    CHECK(kind(0, {huge}, {2}, 1, as_dst) == ErrorKind::kInvalid);
    CHECK(kind(0, {1}, {huge}, 1, as_dst) == ErrorKind::kInvalid);
    CHECK(kind(16, {(std::uint64_t{1} << 60) - 1}, {2}, 16, as_dst) == ErrorKind::kInvalid);
    CHECK(kind(0, {1}, {2, 2}, 1, as_dst) == ErrorKind::kInvalid);
    CHECK(kind(0, {1}, {2}, 3, as_dst) == ErrorKind::kInvalid);
  }
  CHECK(kind(0, {0}, {2}, 1, true) == ErrorKind::kInvalid);
  CHECK(kind(0, {1, 1}, {2, 2}, 1, true) == ErrorKind::kInvalid);
  CHECK(kind(0, {5, 4, 1}, {2, 2, 6}, 1, true) == ErrorKind::kInvalid);
  CHECK(kind(0, {0, 1}, {std::uint64_t{1} << 62, 50}, 1, true) == ErrorKind::kInvalid);
  StridedSide side{dst.data(), 100, 0, {1}};
  CHECK(THROWN(strided_copy(side, side, {50}, 1)).kind == ErrorKind::kInvalid);
  strided_copy({dst.data(), 100, 0, {huge, 1}}, {src.data(), 100, huge, {huge, huge}}, {5, 0}, 1);
}
