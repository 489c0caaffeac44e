// SPDX-License-Identifier: MIT
// run_staged on a device that is not there (fake_device.h): the bits of the reference and the same rows reported,
// whatever the memory, the threads and the places.
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/device.h"
#include "../../csrc/io/positional.h"
#include "../../csrc/io/staged.h"
#include "../../csrc/io/staged_chunks.h"
#include "check.h"
#include "fake_device.h"
#include "models.h"
#include "staged_places.h"

using namespace soup;

TEST(staged_equals_the_reference_wherever_sources_and_result_are) {
  NothingLeft nothing;
  Model model(every_type(), 3, 1);
  Places places(model);
  for (int mix = 0; mix < 81; ++mix) {
    std::vector<Place> sources;
    for (int k = 0, kinds = mix; k < 3; ++k, kinds /= 3) {
      sources.push_back(places.source(static_cast<std::size_t>(k), kinds % 3));
    }
    int to = mix / 27;
    Plan plan = model.plan(sources, places.result(to));
    std::size_t memory = mix % 2 == 0 ? 300'000 : 1 << 20;
    check_run(plan, model, with(memory, 1 + mix % 4), "mix " + std::to_string(mix));
    CHECK_CASE(places.read(to) == model.expected(), std::to_string(mix));
  }
}

TEST(staged_equals_the_reference_in_any_memory) {
  NothingLeft nothing;
  fake::most_microseconds.store(10);
  Model model(every_type(), 2, 2);
  Places places(model);
  for (int to : {0, 2}) {
    Plan plan = places.plan(2, to);
    std::size_t least = staged_memory(plan);
    for (std::size_t memory :
         {least, least + 1, 2 * least, 5 * least + 123, std::size_t{200'000}, std::size_t{8} << 20}) {
      check_run(plan, model, with(memory, memory < 3 * least ? 1 : 3), "to " + std::to_string(to));
      CHECK(places.read(to) == model.expected());
    }
  }
}

TEST(staged_of_any_number_of_sources_and_threads) {
  NothingLeft nothing;
  fake::most_microseconds.store(100);
  for (std::size_t count = 1; count <= 16; ++count) {
    Model model({{30'003, kF32, count % 3 == 0}, {50'001, kBF16, true}, {3, kF16, true}}, count, 3 + count);
    Places places(model);
    int to = static_cast<int>(count % 3);
    Plan plan = places.plan(2, to);
    check_run(plan, model, with(64 * staged_memory(plan), static_cast<int>(count)), std::to_string(count));
    CHECK(places.read(to) == model.expected());
  }
}

TEST(staged_past_the_page_cache_equals_the_reference) {
  NothingLeft nothing;
  Model model(every_type(), 3, 18);
  char name[] = "staged-test-XXXXXX";
  int fd = ::mkstemp(name);
  CHECK(fd >= 0 && ::unlink(name) == 0);
  write_at(fd, model.source(0).data(), model.source(0).size(), 0);
  CHECK(::fsync(fd) == 0 && ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0);
  Places places(model);
  for (int to : {0, 2}) {
    Plan plan = model.plan({{0, fd, 0}, places.source(1, 2), places.source(2, 1)}, places.result(to));
    for (std::size_t memory : {staged_memory(plan), std::size_t{300'000}, std::size_t{4} << 20}) {
      StagedOptions options = with(memory, 2);
      options.direct = true;  // where the memory allows it
      check_run(plan, model, options, "direct");
      CHECK(places.read(to) == model.expected());
    }
  }
  ::close(fd);
}

TEST(staged_cuts_tensors_that_are_larger_than_the_ring) {
  NothingLeft nothing;
  Model model({{1'500'000, kF32, true}, {3, kF32, true}, {1'000'001, kBF16, false}}, 2, 5);
  Places places(model);
  for (int to : {0, 2}) {
    check_run(places.plan(2, to), model, with(1 << 20, 2), "larger");
    CHECK(places.read(to) == model.expected());
  }
}

TEST(staged_result_may_be_one_of_the_sources) {
  NothingLeft nothing;
  fake::most_microseconds.store(100);
  Model model({{200'003, kF32, true}, {1'001, kF32, false}}, 2, 6);
  for (bool host : {false, true}) {
    fake::Bytes device(model.source(0));
    std::vector<unsigned char> memory = model.source(0);
    File file(model.source(1));
    Place both = host ? on_host(memory) : on_device(device);
    check_run(model.plan({both, in_file(file)}, both), model, with(400'000, 3), "in place");
    CHECK((host ? memory : device.read()) == model.expected());
  }
}

TEST(staged_begins_when_what_was_queued_before_is_done) {
  NothingLeft nothing;
  Model model(one_row(10'000), 2, 7);
  Places places(model);
  std::vector<unsigned char> other(model.bytes(), 0xFF);
  device::Stream before = device::stream_create(0);
  auto busy = std::make_unique<fake::Busy>(before);
  Plan plan = places.plan(2, 0);
  device::copy(0, before, reinterpret_cast<void*>(plan.segments[0].dst.at), other.data(), other.size());
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    busy.reset();
  });
  StagedOptions options = with(1 << 20, 2);
  options.after = before;
  check_run(plan, model, options, "after");
  later.join();
  CHECK(places.read(0) == model.expected());
  device::stream_destroy(0, before);
}

TEST(staged_runs_may_overlap_in_time) {
  NothingLeft nothing;
  fake::most_microseconds.store(100);
  Model model(every_type(), 3, 8);
  Places places(model);
  std::vector<std::vector<unsigned char>> outs(4, std::vector<unsigned char>(model.bytes()));
  std::vector<std::thread> callers;
  for (auto& out : outs) {
    callers.emplace_back([&] {
      Plan plan = model.plan({places.source(0, 2), places.source(1, 0), places.source(2, 1)}, on_host(out));
      StagedOutcome outcome = run_staged(plan, with(400'000, 2), kGoOn);
      if (!outcome.finished || outcome.nonfinite != model.nonfinite()) out.clear();
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const auto& out : outs) CHECK(out == model.expected());
}

// To give memory back makes a device wait for everybody's work.
TEST(staged_runs_of_a_size_share_their_memory) {
  NothingLeft nothing;
  Model model(one_row(400'000), 2, 21);
  Places places(model);
  Plan plan = places.plan(2, 2);
  check_run(plan, model, with(400'000, 2), "the first");
  int freed = fake::freed();
  for (int i = 0; i < 3; ++i) check_run(plan, model, with(400'000, 2), "again");
  CHECK(fake::freed() == freed);
  check_run(plan, model, with(8'000'000, 2), "more");
  check_run(plan, model, with(400'000, 2), "less");
  CHECK(fake::freed() == freed + 2);
  CHECK(fake::live_on_device() == 1);
}

TEST(staged_tells_when_everything_was_done) {
  NothingLeft nothing;
  fake::most_microseconds.store(300);
  Model model(one_row(400'000), 3, 9);
  Places places(model);
  Plan plan = places.plan(2, 2);
  StagedOptions options = with(1 << 20, 2);
  options.timeline = true;
  StagedOutcome outcome = run_staged(plan, options, kGoOn);
  std::uint64_t bytes = 0;
  CHECK(outcome.timeline.size() > 4);
  for (const ChunkTimes& times : outcome.timeline) {
    bytes += times.bytes;
    for (const double* span : {times.read, times.copy, times.kernel, times.back, times.write}) {
      CHECK(span[0] <= span[1] && span[1] < 60);
    }
    CHECK(times.copy[1] <= times.kernel[1] && times.kernel[1] <= times.back[1]);
    CHECK(times.read[0] <= times.write[0] && times.thread < 2);
  }
  CHECK(bytes >= 3 * 1'600'000 && bytes < 3 * 1'700'000);
  CHECK(run_staged(plan, with(1 << 20, 2), kGoOn).timeline.empty());
}

TEST(chunks_hold_every_element_once_in_order_and_fit) {
  std::vector<RowSpec> rows = every_type();
  rows.insert(rows.end(), 300, {3, kF16, false});
  rows.insert(rows.end(), 50, {0, kF16, false});
  Model model(rows, 3, 17);
  Places places(model);
  for (const SlotLayout& layout : {SlotLayout{}, SlotLayout{4096, 8192}}) {
    for (int to : {0, 2}) {
      Plan plan = places.plan(2, to);
      std::size_t least = staged_minimum(plan, layout);
      for (std::size_t slot : {least, least + 777, 10 * least, std::size_t{1} << 22}) {
        StagedChunks chunks(plan, slot, layout);
        std::size_t segment = 0;
        std::uint64_t next = 0;
        for (std::size_t c = 0; c < chunks.count(); ++c) {
          CHECK(chunks.begin(c) < chunks.end(c));
          std::size_t bytes = 0;
          for (const Piece* piece = chunks.begin(c); piece < chunks.end(c); ++piece) {
            while (next == plan.segments[segment].n) ++segment, next = 0;
            CHECK(piece->segment == segment && piece->begin == next && piece->n > 0);
            next += piece->n;
            CHECK(next == plan.segments[segment].n || piece->n % kGranule == 0);
            bytes += piece_bytes(plan, *piece, layout).all();
          }
          CHECK(bytes <= slot);
        }
        while (segment < plan.segments.size() && next == plan.segments[segment].n) ++segment, next = 0;
        CHECK(segment == plan.segments.size());
        CHECK(slot < std::size_t{1} << 22 || chunks.count() < 10);
      }
      CHECK(THROWN(StagedChunks(plan, least / 2, layout)).kind == ErrorKind::kInvalid);
    }
  }
}
