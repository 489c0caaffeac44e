// SPDX-License-Identifier: MIT
// Streamed inner products: the bits of those in memory whatever is a file, whatever the threads, the buffers and the
// sums that may wait; what fails, fails with the right error.
#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <vector>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/cpu/dots.h"
#include "../../csrc/io/dot_stream.h"
#include "check.h"
#include "dot_models.h"
#include "models.h"

using namespace soup;

namespace {

const Tick kGoOn = [](std::uint64_t) { return true; };

bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0);
}

// The tensors of a model, each source in a file of its own but for every third, which stays in memory; in the files the
// tensors lie off every alignment.
class Streamed {
 public:
  Streamed(const DotPlan& plan, bool pairs) {
    stream.count = plan.count;
    stream.pairs = pairs;
    std::vector<std::vector<unsigned char>> bytes(plan.count, std::vector<unsigned char>(13));
    std::vector<Place> places;
    for (std::size_t s = 0; s < plan.segments.size(); ++s) {
      for (std::size_t k = 0; k < plan.count; ++k) {
        std::size_t cell = s * plan.count + k;
        const auto* begin = reinterpret_cast<const unsigned char*>(plan.at[cell]);
        places.push_back({bytes[k].size(), 0, plan.dtypes[cell]});
        bytes[k].insert(bytes[k].end(), begin, begin + plan.segments[s].n * item_size(plan.dtypes[cell]));
        bytes[k].insert(bytes[k].end(), s % 3, 0);
      }
    }
    for (const auto& content : bytes) files.push_back(std::make_unique<File>(content));
    for (std::size_t s = 0; s < plan.segments.size(); ++s) {
      const DotPlan::Segment& segment = plan.segments[s];
      stream.append(segment.n, {segment.gradient, kInMemory, segment.dtype});
      for (std::size_t k = 0; k < plan.count; ++k) {
        std::size_t cell = s * plan.count + k;
        Place place = places[cell];
        place.fd = files[k]->fd();
        if (k % 3 == 2) place = {plan.at[cell], kInMemory, plan.dtypes[cell]};
        stream.append_source(place);
      }
    }
  }

  std::vector<double> run(const RunOptions& options, const std::string& isa, std::size_t waiting) const {
    std::vector<double> out(stream.width() * stream.segments.size(), 77.0);
    std::uint64_t last = 0;
    Tick tick = [&](std::uint64_t done) {
      CHECK(done >= last);
      last = done;
      return true;
    };
    CHECK(stream_dots(stream, kernels_for(isa), options, tick, out.data(), waiting));
    CHECK(last == stream.bytes || stream.tiles == 0);
    return out;
  }

  DotStream stream;
  std::vector<std::unique_ptr<File>> files;
};

// All pairs by the products in memory, one source after the other as the gradient.
std::vector<double> expected_pairs(const DotPlan& plan) {
  std::vector<double> all;
  for (std::size_t i = 0; i < plan.count; ++i) {
    DotPlan one;
    one.count = plan.count - i;
    for (std::size_t s = 0; s < plan.segments.size(); ++s) {
      std::size_t cell = s * plan.count;
      one.append(plan.segments[s].n, plan.at[cell + i], plan.dtypes[cell + i]);
      for (std::size_t k = i; k < plan.count; ++k) one.append_source(plan.at[cell + k], plan.dtypes[cell + k]);
    }
    std::vector<double> out(one.count * one.segments.size());
    CHECK(run_dots(one, kernels_for("generic"), 1, [] { return true; }, out.data()));
    all.insert(all.end(), out.begin(), out.end());
  }
  return all;
}

void check_stream(const DotSpec& spec, std::uint64_t seed, bool pairs) {
  DotModel model(spec, seed);
  Streamed streamed(model.plan(), pairs);
  std::vector<double> expected = pairs ? expected_pairs(model.plan()) : model.expected();
  std::size_t least = minimum_buffer(streamed.stream);
  int turn = 0;
  for (const std::string& isa : available_isas()) {
    for (std::size_t buffer : {least, 2 * least + 100, least + spec.count * 9000, std::size_t{1} << 20}) {
      if (buffer < least) continue;
      int threads = 1 + turn % 4;
      std::size_t waiting = turn % 3 == 0 ? 1 : turn % 3 == 1 ? 3 * streamed.stream.width() * sizeof(double) : 4u << 20;
      std::string what = isa + " pairs " + std::to_string(pairs) + " buffer " + std::to_string(buffer) + " threads " +
                         std::to_string(threads) + " waiting " + std::to_string(waiting) + ": " + spec.name();
      for (bool direct : {false, true}) {
        CHECK_CASE(same_bits(streamed.run({threads, buffer, direct}, isa, waiting), expected), what);
      }
      ++turn;
    }
  }
}

DotSpec many_tiles() {
  return {{3 * kDotTile + 17, 0, 5, kDotTile, 0, 300, kDotTile + 1}, {kF32, kBF16}, {kBF16, kF32}, 4, 0, false};
}

}  // namespace

TEST(streamed_dots_follow_the_contract_for_all_types) {
  const std::vector<std::uint8_t> all = {kF32, kBF16, kF16, kF64, kF8E4M3, kF8E5M2, kBF16};
  for (bool pairs : {false, true}) {
    check_stream({{700, 3, 0, 300}, {kF32, kBF16, kF64}, all, 7, 3, true}, 1, pairs);
    check_stream({{700, 3, 0, 300}, {kF16}, all, 1, 0, false}, 2, pairs);
    check_stream({{257, 64}, {kBF16}, {kBF16}, 70, 0, false}, 3, pairs);
  }
}

TEST(streamed_dots_follow_the_contract_for_several_tiles) {
  for (bool pairs : {false, true}) check_stream(many_tiles(), 4, pairs);
}

TEST(streamed_dots_follow_the_contract_for_more_tiles_than_sums) {
  DotModel model({{(kDotSums + 2) * kDotTile + 5}, {kF8E5M2}, {kF8E4M3}, 1, 0, false}, 5);
  Streamed streamed(model.plan(), false);
  for (std::size_t waiting : {std::size_t{8} * 100, kWaitingSums}) {
    CHECK(same_bits(streamed.run({3, 1 << 20}, "auto", waiting), model.expected()));
  }
}

TEST(streamed_dots_stop_at_a_short_file) {
  DotModel model(many_tiles(), 6);
  Streamed streamed(model.plan(), false);
  streamed.files[1]->truncate(2 * kDotTile + 1000);
  std::vector<double> out(streamed.stream.width() * streamed.stream.segments.size());
  for (int threads : {1, 4}) {
    RunOptions options{threads, minimum_buffer(streamed.stream)};
    Error error = THROWN(stream_dots(streamed.stream, kernels_for("auto"), options, kGoOn, out.data()));
    CHECK(error.kind == ErrorKind::kShortRead);
    CHECK(error.fd == streamed.files[1]->fd());
    CHECK(error.offset >= 2 * kDotTile + 1000);
  }
}

TEST(streamed_dots_stop_where_nothing_can_be_read) {
  DotModel model(many_tiles(), 7);
  Streamed streamed(model.plan(), false);
  std::vector<double> out(streamed.stream.width() * streamed.stream.segments.size());
  streamed.stream.sources[0].fd = 1 << 20;
  for (int threads : {1, 4}) {
    Error error = THROWN(stream_dots(streamed.stream, kernels_for("auto"), {threads, 1 << 20}, kGoOn, out.data()));
    CHECK(error.kind == ErrorKind::kRead && error.code == EBADF && error.fd == 1 << 20);
  }
}

TEST(streamed_dots_refuse_a_buffer_that_is_too_small) {
  DotModel model(many_tiles(), 8);
  for (bool pairs : {false, true}) {
    Streamed streamed(model.plan(), pairs);
    std::vector<double> out(streamed.stream.width() * streamed.stream.segments.size());
    RunOptions options{1, minimum_buffer(streamed.stream) - 1};
    Error error = THROWN(stream_dots(streamed.stream, kernels_for("auto"), options, kGoOn, out.data()));
    CHECK(error.kind == ErrorKind::kInvalid);
  }
}

TEST(streamed_dots_are_stopped_by_their_tick) {
  // Holes read as zeros: many tiles at no cost but time.
  constexpr std::uint64_t kElements = 512u << 20;
  File sparse;
  sparse.truncate(4 * kElements);
  DotStream stream;
  stream.count = 1;
  stream.pairs = true;
  stream.append(kElements, {0, kInMemory, kF64});
  stream.append_source({0, sparse.fd(), kF32});
  double out = 0;
  for (int threads : {1, 4}) {
    for (std::size_t waiting : {std::size_t{8} * 64, kWaitingSums}) {
      int ticks = 0;
      Tick stop_at_second = [&](std::uint64_t) { return ++ticks < 2; };
      CHECK(
          !stream_dots(stream, kernels_for("auto"), {threads, minimum_buffer(stream)}, stop_at_second, &out, waiting));
      CHECK(ticks == 2);
    }
  }
}

TEST(streamed_dots_of_nothing_are_done) {
  DotStream empty;
  CHECK(stream_dots(empty, kernels_for("auto"), {4, 0}, kGoOn, nullptr));
  DotModel model({{0, 0}, {kF32}, {kF32}, 2, 0, false}, 9);
  Streamed streamed(model.plan(), false);
  CHECK(same_bits(streamed.run({4, 0}, "auto", kWaitingSums), {0.0, 0.0, 0.0, 0.0}));
}

#if defined(__SSE2__)
TEST(streamed_dots_keep_subnormals_whatever_the_caller_has_set) {
  std::vector<double> gradient(100'000, 1.0), source(gradient.size(), 0x1p-1060);
  DotStream stream;
  stream.count = 1;
  stream.append(source.size(), {reinterpret_cast<std::uint64_t>(gradient.data()), kInMemory, kF64});
  stream.append_source({reinterpret_cast<std::uint64_t>(source.data()), kInMemory, kF64});
  double out = 0;
  unsigned before = _mm_getcsr();
  unsigned flushing = before | 0x8040;
  _mm_setcsr(flushing);
  bool finished = stream_dots(stream, kernels_for("auto"), {4, 0}, kGoOn, &out);
  unsigned after = _mm_getcsr();
  _mm_setcsr(before);
  CHECK(finished);
  CHECK((after & 0xFFC0u) == (flushing & 0xFFC0u));
  CHECK(out == 100'000 * 0x1p-1060);
}
#endif
