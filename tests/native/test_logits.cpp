// SPDX-License-Identifier: MIT
// score_rows on every ISA of this machine against long double and the mathematics library, and itself. Rows end where
// their memory does, so that an access one byte beyond is a sanitizer's report.
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/cpu/logits.h"
#include "../../csrc/scalar.h"
#include "check.h"
#include "random_values.h"

using namespace soup;

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

struct Outputs {
  std::vector<std::int64_t> rank, prediction;
  std::vector<double> margin, confidence, nll;
  explicit Outputs(std::size_t n) : rank(n), prediction(n), margin(n), confidence(n), nll(n) {}

  void bind(LogitArgs& args) {
    args.rank = rank.data();
    args.prediction = prediction.data();
    args.margin = margin.data();
    args.confidence = confidence.data();
    args.nll = nll.data();
  }
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

bool same(const Outputs& a, const Outputs& b) {
  return same_bits(a.rank, b.rank) && same_bits(a.prediction, b.prediction) && same_bits(a.margin, b.margin) &&
         same_bits(a.confidence, b.confidence) && same_bits(a.nll, b.nll);
}

bool near(double found, long double expected) {
  if (std::isnan(expected)) return std::isnan(found);
  if (std::isinf(expected)) return found == static_cast<double>(expected);
  return std::fabs(found - expected) <= 1e-6L * std::fabs(expected);
}

double element(const void* memory, std::uint8_t dtype, std::size_t i) {
  const char* p = static_cast<const char*>(memory);
  switch (dtype) {
    case kF64:
      return load_bits<double>(p + 8 * i);
    case kF32:
      return load_bits<float>(p + 4 * i);
    case kF16:
      return f16_to_f32(load_bits<std::uint16_t>(p + 2 * i));
    default:
      return bf16_to_f32(load_bits<std::uint16_t>(p + 2 * i));
  }
}

void put(void* memory, std::uint8_t dtype, std::size_t i, double x) {
  char* p = static_cast<char*>(memory) + i * item_size(dtype);
  float narrow = static_cast<float>(x);
  std::uint16_t bits = dtype == kF16 ? f64_to_f16(x) : f64_to_bf16(x);
  if (dtype == kF64) std::memcpy(p, &x, 8);
  if (dtype == kF32) std::memcpy(p, &narrow, 4);
  if (item_size(dtype) == 2) std::memcpy(p, &bits, 2);
}

// The values of a row as the contract says.
std::vector<double> row_values(const LogitArgs& args, std::size_t m, std::size_t n) {
  std::vector<double> values;
  bool wide = args.dtype == kF64 || (args.base != nullptr && args.base_dtype == kF64);
  for (std::size_t c = 0; c < args.classes; ++c) {
    double x = element(args.logits, args.dtype, m * args.candidate_stride + n * args.row_stride + c);
    if (args.base != nullptr) {
      double b = element(args.base, args.base_dtype, n * args.base_row_stride + c);
      if (wide) {
        x = args.scale * std::fma(args.weight, x, b);
      } else {
        x = static_cast<float>(args.scale) *
            std::fmaf(static_cast<float>(args.weight), static_cast<float>(x), static_cast<float>(b));
      }
    }
    values.push_back(x);
  }
  return values;
}

void check_row(const std::vector<double>& v, std::int64_t label, const Outputs& found, std::size_t at,
               const std::string& what) {
  std::int64_t rank = 0;
  std::size_t best = 0;
  bool nan = false;
  double target = v[static_cast<std::size_t>(label)];
  for (std::size_t i = 0; i < v.size(); ++i) {
    nan |= std::isnan(v[i]);
    rank += v[i] > target || (v[i] == target && static_cast<std::int64_t>(i) < label);
    if (v[i] > v[best]) best = i;
  }
  if (nan) {
    CHECK_CASE(found.rank[at] == -1 && found.prediction[at] == -1, what);
    CHECK_CASE(std::isnan(found.margin[at]) && std::isnan(found.confidence[at]) && std::isnan(found.nll[at]), what);
    return;
  }
  double other = -kInf;
  for (std::size_t i = 0; i < v.size(); ++i) {
    if (static_cast<std::int64_t>(i) != label) other = std::fmax(other, v[i]);
  }
  long double rest = 0;
  for (std::size_t i = 0; i < v.size(); ++i) {
    if (i != best) rest += std::exp(static_cast<long double>(v[i]) - v[best]);
  }
  if (std::isinf(v[best])) rest = std::numeric_limits<long double>::quiet_NaN();
  CHECK_CASE(found.rank[at] == rank, what);
  CHECK_CASE(found.prediction[at] == static_cast<std::int64_t>(best), what);
  double margin = target - other;
  CHECK_CASE(found.margin[at] == margin || (std::isnan(margin) && std::isnan(found.margin[at])), what);
  CHECK_CASE(near(found.confidence[at], 1 / (1 + rest)), what);
  CHECK_CASE(near(found.nll[at], (static_cast<long double>(v[best]) - target) + std::log1p(rest)), what);
}

struct Case {
  std::uint8_t dtype, base_dtype;
  bool ensemble;
  std::size_t candidates, rows, classes, gap, shift;
  int kind;  // 0: around 0; 1: few values, so that many are equal; 2: large and confident; 3: NaN and infinities too
};

double value(Random& random, int kind) {
  double unit = static_cast<double>(random.below(1u << 20)) / (1u << 20) - 0.5;
  if (kind == 1) return static_cast<double>(random.below(3));
  if (kind == 2) return random.below(40) == 0 ? 900 * unit : 60 * unit;
  if (kind == 3 && random.below(50) == 0) {
    const double odd[] = {kInf, -kInf, -kInf, std::nan(""), 0x1p-140, -0.0, 0.0};
    return random.one_of(odd);
  }
  return 8 * unit;
}

void check_case(const Case& c, Random& random) {
  LogitArgs args{};
  args.dtype = c.dtype;
  args.base_dtype = c.base_dtype;
  args.candidates = c.candidates;
  args.rows = c.rows;
  args.classes = c.classes;
  args.row_stride = c.classes + c.gap;
  args.candidate_stride = c.rows * args.row_stride;
  args.base_row_stride = c.classes + 2 * c.gap;
  args.weight = static_cast<float>(0.1 + 0.3 * static_cast<double>(random.below(4)));
  args.scale = c.kind == 2 ? 1.0 : 0.5;
  args.ignoring = true;
  args.ignore_label = -100;
  std::size_t elements = (c.candidates * c.rows - 1) * args.row_stride + c.classes;
  std::unique_ptr<unsigned char[]> logits(new unsigned char[c.shift + elements * item_size(c.dtype)]);
  for (std::size_t i = 0; i < elements; ++i) put(logits.get() + c.shift, c.dtype, i, value(random, c.kind));
  args.logits = logits.get() + c.shift;
  std::size_t base_elements = (c.rows - 1) * args.base_row_stride + c.classes;
  std::unique_ptr<unsigned char[]> base(new unsigned char[base_elements * item_size(c.base_dtype)]);
  for (std::size_t i = 0; i < base_elements; ++i)
    put(base.get(), c.base_dtype, i, value(random, c.kind == 3 ? 0 : c.kind));
  if (c.ensemble) args.base = base.get();
  std::vector<std::int64_t> labels;
  for (std::size_t n = 0; n < c.rows; ++n) {
    labels.push_back(random.below(9) == 0 ? -100 : static_cast<std::int64_t>(random.below(c.classes)));
  }
  args.labels = labels.data();

  std::string what = "dtypes " + std::to_string(c.dtype) + "," + std::to_string(c.base_dtype) +
                     (c.ensemble ? " ensemble" : "") + " classes " + std::to_string(c.classes) + " kind " +
                     std::to_string(c.kind) + " shift " + std::to_string(c.shift);
  Outputs expected(c.candidates * c.rows);
  expected.bind(args);
  CHECK(score_logits(args, kernels_for("generic"), 1, [] { return true; }));
  for (std::size_t m = 0; m < c.candidates; ++m) {
    for (std::size_t n = 0; n < c.rows; ++n) {
      std::size_t at = m * c.rows + n;
      if (labels[n] == -100) {
        CHECK_CASE(expected.rank[at] == -2 && expected.prediction[at] == -1 && std::isnan(expected.nll[at]), what);
      } else {
        check_row(row_values(args, m, n), labels[n], expected, at, what);
      }
    }
  }
  for (const std::string& isa : available_isas()) {
    Outputs found(c.candidates * c.rows);
    found.bind(args);
    CHECK(score_logits(args, kernels_for(isa), 3, [] { return true; }));
    CHECK_CASE(same(found, expected), isa + ": " + what);
    // Ranks alone are found another way.
    args.prediction = nullptr;
    args.margin = args.confidence = args.nll = nullptr;
    std::vector<std::int64_t> rank(expected.rank.size());
    args.rank = rank.data();
    CHECK(score_logits(args, kernels_for(isa), 2, [] { return true; }));
    CHECK_CASE(rank == expected.rank, isa + ": ranks alone: " + what);
    args.most_rank = 2;
    std::vector<std::int64_t> at_most(expected.rank.size());
    args.rank = at_most.data();
    CHECK(score_logits(args, kernels_for(isa), 1, [] { return true; }));
    for (std::int64_t& r : rank) r = r < 2 ? r : 2;
    CHECK_CASE(rank == at_most, isa + ": ranks of at most 2: " + what);
    args.most_rank = 0;
  }
}

}  // namespace

TEST(logits_score_as_the_contract_says) {
  const std::size_t sizes[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 200, 1000};
  const std::size_t counts[] = {1, 2, 3, 35};
  Random random(1);
  for (std::uint8_t dtype : {kF64, kF32, kF16, kBF16}) {
    for (std::uint8_t base : {kF64, kF32, kF16, kBF16}) {
      for (int i = 0; i < 24; ++i) {
        std::size_t gap = random.below(3) * random.below(5);
        Case c{dtype, base, i % 3 != 0, random.one_of(counts), 1 + random.below(4), random.one_of(sizes),
               gap,   0,    i % 4};
        if (c.candidates > 3 && c.classes > 70) c.candidates = 2;
        c.shift = random.below(2) * random.below(9);
        check_case(c, random);
      }
    }
  }
}

TEST(logits_of_several_blocks_score_as_the_contract_says) {
  const std::size_t sizes[] = {4096, 4097, 8200};
  Random random(2);
  for (std::size_t classes : sizes) {
    for (std::uint8_t dtype : {kF64, kF32, kF16, kBF16}) {
      for (int kind = 0; kind < 4; ++kind) {
        check_case({dtype, kF32, kind % 2 == 1, 2, 2, classes, 0, classes % 2, kind}, random);
      }
    }
  }
}

TEST(logits_score_to_the_same_bits_on_every_machine) {
  // Taken on x86-64 with AVX-512: a change of these is a change of the contract in kernels.h.
  constexpr std::size_t kRows = 7, kClasses = 5000;
  // By the code of the dtype.
  const std::uint64_t hashes[] = {9830752155613425691u, 5650015057251996804u, 7202251507181123190u,
                                  11920609456397783427u};
  for (std::uint8_t dtype : {kF64, kF32, kF16, kBF16}) {
    Random random(4);
    std::vector<unsigned char> logits(kRows * kClasses * 8), base(kClasses * 4);
    for (std::size_t i = 0; i < kRows * kClasses; ++i) put(logits.data(), dtype, i, value(random, 0));
    for (std::size_t i = 0; i < kClasses; ++i) put(base.data(), kF32, i, value(random, 2));
    std::vector<std::int64_t> labels = {0, 1, 63, 64, 4095, 4096, 4999};
    LogitArgs args{};
    args.logits = logits.data();
    args.base = base.data();
    args.dtype = dtype;
    args.base_dtype = kF32;
    args.candidates = 1;
    args.rows = kRows;
    args.classes = args.row_stride = kClasses;
    args.weight = 0.75;
    args.scale = 0.125;
    args.labels = labels.data();
    for (const std::string& isa : available_isas()) {
      Outputs found(kRows);
      found.bind(args);
      CHECK(score_logits(args, kernels_for(isa), 1, [] { return true; }));
      std::uint64_t hash = 0xCBF29CE484222325ull;
      for (std::size_t n = 0; n < kRows; ++n) {
        for (double x : {found.margin[n], found.confidence[n], found.nll[n]}) {
          hash = (hash ^ bit_cast<std::uint64_t>(x)) * 0x100000001B3ull;
        }
      }
      CHECK_CASE(hash == hashes[dtype], isa + " " + std::to_string(dtype) + " " + std::to_string(hash));
    }
  }
}

TEST(logits_scored_by_several_threads_are_the_same) {
  // Above the size below which one thread does all.
  Random random(3);
  check_case({kBF16, kF32, false, 3, 200, 1000, 0, 0, 0}, random);
  check_case({kF32, kBF16, true, 3, 200, 1000, 0, 0, 0}, random);
}

TEST(logits_total_what_counts) {
  std::vector<std::int64_t> rank = {0, 4, -2, 5, -1, -2, 0, 1, -2};
  std::vector<double> nll = {1e16, 1.0, std::nan(""), -1e16, 3.0, std::nan(""), 1.0, 2.0, std::nan("")};
  LogitArgs args{};
  args.candidates = 3;
  args.rows = 3;
  args.rank = rank.data();
  args.nll = nll.data();
  std::vector<std::int64_t> top(6), nan_rows(3);
  std::vector<double> total(3);
  total_logits(args, {1, 5}, top.data(), nan_rows.data(), total.data());
  CHECK((top == std::vector<std::int64_t>{1, 0, 1, 2, 0, 2}));
  CHECK((nan_rows == std::vector<std::int64_t>{0, 1, 0}));
  CHECK((total == std::vector<double>{1e16 + 1.0, -1e16 + 3.0, 3.0}));
}

// The order, said another way: of sum i, rows i, i + 256, ...; the sums of a range are those of its even halves added.
double summed(const std::vector<double>& values, std::size_t first, std::size_t step) {
  if (step == 256) {
    double sum = 0.0;
    for (std::size_t n = first; n < values.size(); n += step) sum += values[n];
    return sum;
  }
  return summed(values, first, 2 * step) + summed(values, first + step, 2 * step);
}

TEST(logits_total_in_one_order) {
  Random random(5);
  for (std::size_t rows : {1u, 2u, 128u, 255u, 256u, 257u, 300u, 1000u}) {
    std::vector<std::int64_t> rank(rows);
    std::vector<double> nll(rows), counted(rows);
    for (std::size_t n = 0; n < rows; ++n) {
      nll[n] = std::ldexp(static_cast<double>(random.below(1u << 30)), static_cast<int>(random.below(60)) - 60);
      if (random.below(5) == 0) rank[n] = -2;
      counted[n] = rank[n] == -2 ? 0.0 : nll[n];
    }
    LogitArgs args{};
    args.candidates = 1;
    args.rows = rows;
    args.rank = rank.data();
    args.nll = nll.data();
    std::int64_t nan_rows = -1;
    double total = -1;
    total_logits(args, {}, nullptr, &nan_rows, &total);
    CHECK_CASE(total == summed(counted, 0, 1), std::to_string(rows));
    rank[rows / 2] = -1;
    nll[rows / 2] = -std::nan("1");
    total_logits(args, {}, nullptr, &nan_rows, &total);
    CHECK(nan_rows == 1 && bit_cast<std::uint64_t>(total) == kNanF64);
  }
}

TEST(logits_stop_when_told_to) {
  std::vector<std::uint16_t> logits(1000 * 4096);
  std::vector<std::int64_t> labels(1000), rank(1000 * 50);
  LogitArgs args{};
  args.logits = logits.data();
  args.dtype = kBF16;
  args.candidates = 50;  // the same memory again and again: long enough to be asked
  args.rows = 1000;
  args.classes = args.row_stride = 4096;
  args.labels = labels.data();
  args.rank = rank.data();
  CHECK(!score_logits(args, kernels_for("generic"), 2, [] { return false; }));
}
