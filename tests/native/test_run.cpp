// SPDX-License-Identifier: MIT
// run_plan between memory and files: the bits of the reference and the same rows reported, whatever the threads and the
// buffers; what fails, fails with the right error, and ends all threads.
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <memory>
#include <string>
#include <thread>
#include <vector>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/io/run.h"
#include "check.h"
#include "models.h"

using namespace soup;

namespace {

const Tick kGoOn = [](std::uint64_t) { return true; };

// Every type, rows of every awkward size, some without elements, some spoiled; about 2 MB with three sources, so that
// runs start threads.
std::vector<RowSpec> every_type() {
  std::vector<RowSpec> rows;
  for (std::uint8_t dtype : {kF64, kF32, kF16, kBF16, kF8E4M3, kF8E5M2, kRaw}) {
    bool spoiled = dtype != kRaw;
    for (std::uint64_t n : {0, 1, 63, 64, 65, 1000, 0, 20'011}) rows.push_back({n, dtype, spoiled && n % 5 == 0});
    rows.push_back({7, dtype, spoiled});
  }
  return rows;
}

std::vector<RowSpec> one_row(std::uint64_t n) { return {{n, kF32, false}}; }

void check_run(const Plan& plan, const Model& model, const std::string& isa, int threads, std::size_t buffer,
               const std::string& where) {
  std::atomic<std::uint64_t> last{0};
  Tick tick = [&](std::uint64_t done) {
    bool grew = done >= last.exchange(done);
    CHECK(grew);
    return true;
  };
  Outcome outcome = run_plan(plan, kernels_for(isa), {threads, buffer}, tick);
  std::string what = where + " " + isa + " threads " + std::to_string(threads) + " buffer " + std::to_string(buffer);
  CHECK_CASE(outcome.finished, what);
  CHECK_CASE(outcome.nonfinite == model.nonfinite(), what);
  CHECK_CASE(last.load() == plan_bytes(plan), what);
}

Error failure(const Plan& plan, int threads, std::size_t buffer) {
  return THROWN(run_plan(plan, kernels_for("auto"), {threads, buffer}, kGoOn));
}

}  // namespace

TEST(run_in_memory_equals_the_reference) {
  Model model(every_type(), 3, 1);
  for (const std::string& isa : available_isas()) {
    for (int threads : {1, 2, 3, 8}) {
      std::vector<unsigned char> out(model.bytes());
      check_run(model.plan_in_memory(out), model, isa, threads, 0, "memory");
      CHECK(out == model.expected());
    }
  }
}

TEST(run_in_memory_on_many_chunks_and_past_the_caches) {
  Model model({{1'500'000, kF32, true}, {3, kF32, true}, {1'000'001, kF32, false}, {600'000, kBF16, true}}, 2, 2);
  for (int threads : {1, 4}) {
    std::vector<unsigned char> out(model.bytes());
    check_run(model.plan_in_memory(out), model, "auto", threads, 0, "memory");
    CHECK(out == model.expected());
  }
}

TEST(run_between_files_and_memory_equals_the_reference) {
  Model model(every_type(), 3, 3);
  std::vector<std::unique_ptr<File>> files;
  for (std::size_t k = 0; k < model.count(); ++k) files.push_back(std::make_unique<File>(model.source(k)));
  for (int mix = 1; mix < 16; ++mix) {  // which of the three sources and the result are files
    std::vector<Place> sources;
    for (std::size_t k = 0; k < model.count(); ++k) {
      sources.push_back((mix >> k & 1) != 0 ? in_file(*files[k]) : in_memory(model.source(k).data()));
    }
    File result;
    std::vector<unsigned char> out(model.bytes());
    bool to_file = (mix & 8) != 0;
    Plan plan = model.plan(sources, to_file ? in_file(result) : in_memory(out.data()));
    std::size_t least = plan_minimum_buffer(plan);
    for (std::size_t buffer : {least, 3 * least + 5, std::size_t{1} << 20}) {
      int threads = 1 + mix % 8;
      check_run(plan, model, "auto", threads, buffer, "files " + std::to_string(mix));
      CHECK((to_file ? result.read(model.bytes()) : out) == model.expected());
    }
  }
}

TEST(run_from_many_files_on_all_thread_counts) {
  Model model({{100'003, kF32, false}, {50'001, kBF16, true}}, 5, 4);
  std::vector<std::unique_ptr<File>> files;
  std::vector<Place> sources;
  for (std::size_t k = 0; k < model.count(); ++k) {
    files.push_back(std::make_unique<File>(model.source(k)));
    sources.push_back(in_file(*files[k]));
  }
  for (int threads = 1; threads <= 8; ++threads) {
    File result;
    Plan plan = model.plan(sources, in_file(result));
    check_run(plan, model, "auto", threads, 16 << 10, "files");
    CHECK(result.read(model.bytes()) == model.expected());
  }
}

TEST(run_stops_at_a_short_file) {
  Model model(one_row(400'000), 2, 5);
  File first(model.source(0)), second(model.source(1)), result;
  second.truncate(1'000'001);
  for (int threads : {1, 4}) {
    Error error = failure(model.plan({in_file(first), in_file(second)}, in_file(result)), threads, 64 << 10);
    CHECK(error.kind == ErrorKind::kShortRead);
    CHECK(error.fd == second.fd());
    CHECK(error.offset >= 1'000'001 && error.offset < 1'600'000);
  }
}

TEST(run_stops_where_nothing_can_be_read_or_written) {
  Model model(one_row(400'000), 2, 6);
  File first(model.source(0)), second(model.source(1)), result;
  Place closed{0, 1 << 20, 0};
  for (int threads : {1, 4}) {
    Error read = failure(model.plan({in_file(first), closed}, in_file(result)), threads, 64 << 10);
    CHECK(read.kind == ErrorKind::kRead && read.code == EBADF && read.fd == closed.fd);
    Error write = failure(model.plan({in_file(first), in_file(second)}, closed), threads, 64 << 10);
    CHECK(write.kind == ErrorKind::kWrite && write.code == EBADF && write.fd == closed.fd);
  }
}

TEST(run_stops_at_a_full_disk) {
  int full = ::open("/dev/full", O_WRONLY);
  CHECK(full >= 0);
  Model model(one_row(400'000), 2, 7);
  File first(model.source(0)), second(model.source(1));
  for (int threads : {1, 4}) {
    Error error = failure(model.plan({in_file(first), in_file(second)}, {0, full, 0}), threads, 64 << 10);
    CHECK(error.kind == ErrorKind::kWrite && error.code == ENOSPC && error.fd == full);
  }
  ::close(full);
}

TEST(run_refuses_a_buffer_that_is_too_small) {
  Model model(one_row(1000), 2, 8);
  File first(model.source(0)), second(model.source(1)), result;
  Plan plan = model.plan({in_file(first), in_file(second)}, in_file(result));
  std::size_t least = plan_minimum_buffer(plan);
  CHECK(failure(plan, 1, least - 1).kind == ErrorKind::kInvalid);
  CHECK(failure(plan, 1, 0).kind == ErrorKind::kInvalid);
  check_run(plan, model, "auto", 1, least, "files");
}

TEST(run_is_stopped_by_its_tick) {
  // Holes read as zeros: many chunks at no cost but time.
  constexpr std::uint64_t kElements = 64u << 20;
  File sparse;
  sparse.truncate(4 * kElements);
  Plan plan;
  plan.sources = {{0, sparse.fd(), kF32}};
  plan.weights = {1.0};
  plan.weights_f32 = {1.0f};
  File result;
  append_segment(plan, {kElements, 0, 1, {0, result.fd(), kF32}, 1.0, kAccF64});
  for (int threads : {1, 4}) {
    int ticks = 0;
    Tick stop_at_second = [&](std::uint64_t) { return ++ticks < 2; };
    Outcome outcome = run_plan(plan, kernels_for("auto"), {threads, plan_minimum_buffer(plan)}, stop_at_second);
    CHECK(!outcome.finished);
    CHECK(ticks == 2);
  }
}

TEST(runs_of_separate_plans_may_overlap_in_time) {
  Model model(every_type(), 3, 9);
  File shared(model.source(1));
  std::vector<std::vector<unsigned char>> outs(6, std::vector<unsigned char>(model.bytes()));
  std::vector<std::thread> callers;
  for (auto& out : outs) {
    callers.emplace_back([&model, &shared, &out] {
      Plan plan = model.plan({in_memory(model.source(0).data()), in_file(shared), in_memory(model.source(2).data())},
                             in_memory(out.data()));
      for (int threads : {1, 3}) {
        Outcome outcome = run_plan(plan, kernels_for("auto"), {threads, 32 << 10}, kGoOn);
        if (!outcome.finished || outcome.nonfinite != model.nonfinite()) out.clear();
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const auto& out : outs) CHECK(out == model.expected());
}

TEST(run_of_nothing_is_finished) {
  Plan empty;
  CHECK(run_plan(empty, kernels_for("auto"), {4, 0}, kGoOn).finished);
  Model model({{0, kF32, false}, {0, kRaw, false}}, 2, 10);
  std::vector<unsigned char> out(1);
  check_run(model.plan_in_memory(out), model, "auto", 4, 0, "nothing");
}

#if defined(__SSE2__)
TEST(run_keeps_subnormals_whatever_the_caller_has_set) {
  std::vector<float> source(300'000, 0x1p-140f), out(source.size());
  Plan plan;
  plan.sources = {{reinterpret_cast<std::uint64_t>(source.data()), -1, kF32}};
  plan.weights = {1.0};
  plan.weights_f32 = {1.0f};
  append_segment(plan, {source.size(), 0, 1, {reinterpret_cast<std::uint64_t>(out.data()), -1, kF32}, 1.0, kAccF32});
  unsigned before = _mm_getcsr();
  unsigned flushing = before | 0x8040;
  _mm_setcsr(flushing);
  Outcome outcome = run_plan(plan, kernels_for("auto"), {4, 0}, kGoOn);
  unsigned after = _mm_getcsr();
  _mm_setcsr(before);
  CHECK(outcome.finished);
  CHECK((after & 0xFFC0u) == (flushing & 0xFFC0u));
  CHECK(out == source);
}
#endif
