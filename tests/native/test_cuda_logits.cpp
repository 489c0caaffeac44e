// SPDX-License-Identifier: MIT
// score_logits of the device, emulated, against the generic kernels of the CPU: every output to the bit. Rows end where
// their memory does, so that an access beyond is a sanitizer's report.
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/cpu/logits.h"
#include "../../csrc/device.h"
#include "../../csrc/scalar.h"
#include "check.h"
#include "emulate_runtime.h"
#include "random_values.h"

using namespace soup;

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr std::int64_t kIgnored = -100;
enum Output : unsigned { kPrediction = 1, kMargin = 2, kConfidence = 4, kNll = 8, kEverything = 15 };

// What a call gives; numbers that are no result are filled with a mark, so that what is not wanted stays as it was.
struct Outputs {
  std::vector<std::int64_t> rank, prediction, top, nan_rows;
  std::vector<double> margin, confidence, nll, total;

  Outputs(std::size_t rows, std::size_t limits, std::size_t candidates)
      : rank(rows, 77),
        prediction(rows, 77),
        top(limits * candidates, 77),
        nan_rows(candidates, 77),
        margin(rows, 77),
        confidence(rows, 77),
        nll(rows, 77),
        total(candidates, 77) {}

  void bind(LogitArgs& args, unsigned wanted) {
    args.rank = rank.data();
    args.prediction = (wanted & kPrediction) != 0 ? prediction.data() : nullptr;
    args.margin = (wanted & kMargin) != 0 ? margin.data() : nullptr;
    args.confidence = (wanted & kConfidence) != 0 ? confidence.data() : nullptr;
    args.nll = (wanted & kNll) != 0 ? nll.data() : nullptr;
  }
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// The first output that differs.
std::string difference(const Outputs& a, const Outputs& b) {
  if (!same_bits(a.rank, b.rank)) return "rank";
  if (!same_bits(a.prediction, b.prediction)) return "prediction";
  if (!same_bits(a.margin, b.margin)) return "margin";
  if (!same_bits(a.confidence, b.confidence)) return "confidence";
  if (!same_bits(a.nll, b.nll)) return "nll";
  if (!same_bits(a.top, b.top)) return "top";
  if (!same_bits(a.nan_rows, b.nan_rows)) return "nan_rows";
  return same_bits(a.total, b.total) ? "" : "total";
}

void put(unsigned char* memory, std::uint8_t dtype, std::size_t i, double x) {
  unsigned char* p = memory + i * item_size(dtype);
  float narrow = static_cast<float>(x);
  std::uint16_t bits = dtype == kF16 ? f64_to_f16(x) : f64_to_bf16(x);
  if (dtype == kF64) std::memcpy(p, &x, 8);
  if (dtype == kF32) std::memcpy(p, &narrow, 4);
  if (item_size(dtype) == 2) std::memcpy(p, &bits, 2);
}

// around 0; few values, so that many are equal; large and confident; NaN and infinities too; bits of any kind
enum Kind : int { kPlain, kTied, kConfident, kOdd, kAnyBits, kKinds };

double value(Random& random, int kind) {
  double unit = static_cast<double>(random.below(1u << 20)) / (1u << 20) - 0.5;
  if (kind == kTied) return static_cast<double>(random.below(3)) * (random.below(2) == 0 ? 1.0 : -0.0);
  if (kind == kConfident) return random.below(40) == 0 ? 900 * unit : 60 * unit;
  if (kind == kOdd && random.below(50) == 0) {
    const double odd[] = {kInf, -kInf, -kInf, -kInf, std::nan(""), 0x1p-140, -0.0, 0.0};
    return random.one_of(odd);
  }
  return 8 * unit;
}

// Logits or a base, in memory of their own that starts `shift` bytes into an aligned allocation.
class Memory {
 public:
  Memory(std::uint8_t dtype, std::size_t elements, std::size_t shift, int kind, Random& random)
      : bytes_(shift + elements * item_size(dtype) + 1), shift_(shift) {
    memory_.reset(new (std::align_val_t{64}) unsigned char[shift + elements * item_size(dtype)]);
    for (std::size_t i = 0; i < elements; ++i) {
      put(at(), dtype, i, value(random, kind == kAnyBits ? kPlain : kind));
      if (kind == kAnyBits && random.below(8) != 0) {
        std::uint64_t bits = random.bits();
        std::memcpy(at() + i * item_size(dtype), &bits, item_size(dtype));
      }
    }
  }
  unsigned char* at() { return memory_.get() + shift_; }

 private:
  struct Free {
    void operator()(unsigned char* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };
  std::unique_ptr<unsigned char, Free> memory_;
  std::size_t bytes_, shift_;
};

struct Case {
  std::uint8_t dtype, base_dtype;
  bool ensemble;
  std::size_t candidates, rows, classes, gap, shift;
  int kind;
  unsigned wanted;
};

std::string name_of(const Case& c) {
  return "dtypes " + std::to_string(c.dtype) + "," + std::to_string(c.base_dtype) + (c.ensemble ? " ensemble" : "") +
         " shape " + std::to_string(c.candidates) + "," + std::to_string(c.rows) + "," + std::to_string(c.classes) +
         " gap " + std::to_string(c.gap) + " shift " + std::to_string(c.shift) + " kind " + std::to_string(c.kind) +
         " wanted " + std::to_string(c.wanted);
}

const std::vector<std::int64_t> kLimits = {1, 5, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 100000};

// Runs a call on the emulated device; the row of the first label that is no class.
std::int64_t run(LogitArgs args, Outputs& found, unsigned wanted, std::size_t limits) {
  found.bind(args, wanted);
  std::int64_t bad_row = 77;
  device::LogitTotals totals{kLimits.data(),     limits,  found.top.data(), found.nan_rows.data(),
                             found.total.data(), &bad_row};
  std::size_t bytes = device::logit_scratch(args);
  std::vector<double> scratch(bytes / sizeof(double));
  CHECK(bytes % sizeof(double) == 0);
  device::load_kernels(0);
  std::size_t loaded = emulate::loaded();
  device::score_logits(0, 0, args, totals, scratch.data());
  CHECK(emulate::loaded() == loaded);
  device::synchronize(0, 0);
  return bad_row;
}

void check_case(const Case& c, Random& random, std::size_t limits = 2) {
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
  args.scale = c.kind == kConfident ? 1.0 : 0.5;
  args.ignoring = random.below(3) != 0;
  args.ignore_label = kIgnored;
  const std::int64_t most[] = {0, 1, 1, 5};
  args.most_rank = random.one_of(most);
  std::size_t all = c.candidates * c.rows;
  Memory logits(c.dtype, all == 0 ? 0 : (all - 1) * args.row_stride + c.classes, c.shift, c.kind, random);
  Memory base(c.base_dtype, c.rows == 0 ? 0 : (c.rows - 1) * args.base_row_stride + c.classes, c.shift / 2, c.kind % 3,
              random);
  args.logits = logits.at();
  if (c.ensemble) args.base = base.at();
  std::vector<std::int64_t> labels;
  for (std::size_t n = 0; n < c.rows; ++n) {
    bool skipped = args.ignoring && random.below(6) == 0;
    labels.push_back(skipped ? kIgnored : static_cast<std::int64_t>(random.below(c.classes)));
  }
  args.labels = labels.data();

  Outputs expected(all, limits, c.candidates), found = expected, again = expected;
  expected.bind(args, c.wanted);
  CHECK(score_logits(args, kernels_for("generic"), 1, [] { return true; }));
  std::vector<std::int64_t> k(kLimits.begin(), kLimits.begin() + static_cast<std::ptrdiff_t>(limits));
  total_logits(args, k, expected.top.data(), expected.nan_rows.data(), expected.total.data());
  CHECK_CASE(run(args, found, c.wanted, limits) == -1, name_of(c));
  CHECK_CASE(difference(found, expected).empty(), difference(found, expected) + ": " + name_of(c));
  run(args, again, c.wanted, limits);
  CHECK_CASE(difference(again, found).empty(), "again: " + name_of(c));
}

const std::size_t kClasses[] = {1,   2,   3,    10,   31,   32,   33,   63,   64,   65,   100,  127,
                                128, 129, 1000, 1023, 1024, 1025, 2047, 2048, 2049, 4095, 4096, 4097};
constexpr std::uint8_t kTypes[] = {kF64, kF32, kF16, kBF16};

}  // namespace

TEST(emulated_logits_score_as_on_a_cpu_whatever_the_classes) {
  Random random(1);
  for (std::size_t classes : kClasses) {
    for (std::uint8_t dtype : kTypes) {
      for (bool ensemble : {false, true}) {
        int kind = static_cast<int>(random.below(kKinds));
        std::size_t candidates = 1 + random.below(3), rows = classes > 1000 ? 2 : 1 + random.below(40);
        check_case({dtype, kF32, ensemble, candidates, rows, classes, 0, 0, kind, kEverything}, random);
      }
    }
  }
}

// What ThreadSanitizer is shown: each way through the kernels, once.
TEST(emulated_logits_of_few_rows_score_as_on_a_cpu) {
  Random random(9);
  check_case({kF32, kF32, false, 2, 9, 20, 0, 0, kTied, kEverything}, random);
  check_case({kBF16, kF32, true, 3, 1, 700, 0, 0, kPlain, kEverything}, random);
  check_case({kF16, kF16, true, 1, 2, 101, 0, 0, kOdd, 0}, random);
  check_case({kBF16, kF32, false, 2, 3, 1000, 0, 0, kTied, kEverything}, random);
  check_case({kBF16, kF32, true, 3, 2, 701, 0, 0, kPlain, kEverything}, random);
  check_case({kF64, kF32, false, 1, 1, 1025, 0, 0, kTied, kEverything}, random);
  check_case({kF32, kF32, false, 1, 1, 2500, 0, 0, kPlain, kNll}, random);
  check_case({kBF16, kBF16, true, 1, 1, 4200, 0, 0, kPlain, kEverything}, random);
}

// Those that a warp keeps in its registers: any number of lanes a row, strips that end anywhere, rows that end where
// their memory does, ties between lanes and within one.
TEST(emulated_logits_of_16_bits_score_as_on_a_cpu_in_registers) {
  Random random(10);
  const std::size_t sizes[] = {4,    12,   60,   64,   68,   252,  256,  260,  500,  516,  1000,
                               1020, 1028, 2000, 2048, 2052, 3000, 4096, 4100, 8256, 9000, 12288};
  for (std::size_t classes : sizes) {
    for (std::uint8_t dtype : {kF16, kBF16}) {
      for (std::uint8_t base : {kF32, kF16, kBF16}) {
        for (int kind = 0; kind < kKinds; ++kind) {
          if (classes > 2048 && base != kF32) continue;
          bool ensemble = random.below(2) == 0;
          unsigned wanted = random.below(3) == 0 ? static_cast<unsigned>(random.below(16)) : kEverything;
          std::size_t gap = 4 * random.below(2), rows = 1 + random.below(classes > 300 ? 3 : 40);
          check_case({dtype, base, ensemble, 1 + random.below(3), rows, classes, gap, 0, kind, wanted}, random);
        }
      }
    }
  }
}

TEST(emulated_logits_of_several_blocks_score_as_on_a_cpu) {
  Random random(2);
  for (std::size_t classes : {8192u, 10000u}) {
    for (std::uint8_t dtype : kTypes) {
      for (bool ensemble : {false, true}) {
        int kind = static_cast<int>(random.below(kKinds));
        unsigned wanted = random.below(3) == 0 ? 0u : static_cast<unsigned>(kEverything);
        check_case({dtype, kBF16, ensemble, 2, 3, classes, classes % 3, 0, kind, wanted}, random);
      }
    }
  }
}

TEST(emulated_logits_score_as_on_a_cpu_wherever_they_are) {
  // Strides, alignments of rows, of elements too, and any pair of types.
  const std::size_t classes[] = {5, 33, 63, 64, 100, 250, 1025};
  Random random(3);
  for (std::uint8_t dtype : kTypes) {
    for (std::uint8_t base : kTypes) {
      for (int i = 0; i < 10; ++i) {
        std::size_t shift = random.below(2) == 0 ? item_size(dtype) * random.below(9) : random.below(17);
        Case c{dtype,
               base,
               i % 4 != 0,
               1 + random.below(4),
               1 + random.below(5),
               random.one_of(classes),
               random.below(3) * random.below(5),
               shift,
               static_cast<int>(random.below(kKinds)),
               kEverything};
        check_case(c, random);
      }
    }
  }
}

TEST(emulated_logits_give_what_is_wanted_and_no_more) {
  const std::size_t classes[] = {3, 40, 100, 1000, 2500, 5000};
  Random random(4);
  for (std::size_t count : classes) {
    for (unsigned wanted = 0; wanted <= kEverything; ++wanted) {
      std::uint8_t dtype = random.one_of(kTypes);
      int kind = static_cast<int>(random.below(kKinds));
      check_case({dtype, kF32, random.below(2) == 0, 2, count > 1000 ? 2u : 5u, count, 0, 0, kind, wanted}, random);
    }
  }
}

TEST(emulated_logits_score_as_on_a_cpu_for_any_number_of_rows_and_candidates) {
  Random random(5);
  for (std::size_t candidates : {1u, 2u, 5u, 33u}) {
    for (std::size_t rows : {0u, 1u, 31u, 70u, 300u}) {
      for (std::size_t classes : {7u, 65u}) {
        if (candidates * rows > 3000) continue;
        bool ensemble = random.below(2) == 0;
        check_case({kF32, kF32, ensemble, candidates, rows, classes, 0, 0, kTied, kEverything}, random);
        check_case({kBF16, kF32, !ensemble, candidates, rows, classes, 1, 0, kPlain, 0}, random);
      }
    }
  }
}

TEST(emulated_logits_count_for_any_number_of_limits) {
  Random random(6);
  for (std::size_t limits : {0u, 1u, 16u, 17u, 18u}) {
    check_case({kF32, kF32, false, 3, 20, 25, 0, 0, kPlain, kNll}, random, limits);
  }
}

TEST(emulated_logits_total_in_the_order_of_the_contract) {
  Random random(7);
  for (std::size_t rows : {255u, 256u, 257u, 1000u, 5000u}) {
    check_case({kF32, kF32, false, 2, rows, 3, 0, 0, kConfident, kNll}, random);
  }
}

TEST(emulated_logits_find_labels_that_are_no_class) {
  Random random(8);
  for (std::size_t classes : {4u, 100u, 5000u}) {
    Memory logits(kF32, 2 * 6 * classes, 0, kPlain, random);
    auto last = static_cast<std::int64_t>(classes - 1);
    std::vector<std::int64_t> labels = {0, kIgnored, last, -1, last + 1, std::numeric_limits<std::int64_t>::max()};
    std::vector<std::int64_t> nearest = {0, kIgnored, last, 0, last, last};
    LogitArgs args{};
    args.logits = logits.at();
    args.dtype = kF32;
    args.candidates = 2;
    args.rows = 6;
    args.classes = args.row_stride = classes;
    args.candidate_stride = 6 * classes;
    args.ignoring = true;
    args.ignore_label = kIgnored;
    for (unsigned wanted : {0u, static_cast<unsigned>(kEverything)}) {
      Outputs found(12, 2, 2), expected(12, 2, 2);
      args.labels = nearest.data();
      CHECK(run(args, expected, wanted, 2) == -1);
      args.labels = labels.data();
      CHECK(run(args, found, wanted, 2) == 3);
      CHECK_CASE(difference(found, expected).empty(), difference(found, expected));
    }
    args.ignoring = false;
    Outputs found(12, 2, 2);
    CHECK(run(args, found, kNll, 2) == 1);
  }
}

TEST(emulated_logits_refuse_what_has_no_classes) {
  LogitArgs args{};
  args.candidates = args.rows = 1;
  std::int64_t bad_row = 0;
  device::LogitTotals totals{nullptr, 0, nullptr, nullptr, nullptr, &bad_row};
  CHECK(std::string(THROWN(device::score_logits(0, 0, args, totals, nullptr)).what()).find("0 classes") !=
        std::string::npos);
}
