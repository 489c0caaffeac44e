// SPDX-License-Identifier: MIT
// What fails in run_staged, fails with the right error, and leaves nothing running.
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <string>
#include <vector>

#include "../../csrc/io/staged.h"
#include "check.h"
#include "fake_device.h"
#include "models.h"
#include "staged_places.h"

using namespace soup;

TEST(staged_stops_at_a_short_file) {
  NothingLeft nothing;
  fake::most_microseconds.store(100);
  Model model(one_row(400'000), 2, 10);
  Places places(model);
  places.file(1).truncate(1'000'001);
  for (int threads : {1, 4}) {
    Error error = failure(places.plan(2, 0), with(400'000, threads));
    CHECK(error.kind == ErrorKind::kShortRead);
    CHECK(error.fd == places.file(1).fd());
    CHECK(error.offset >= 1'000'001 && error.offset < 1'600'000);
  }
}

TEST(staged_stops_where_nothing_can_be_read_or_written) {
  NothingLeft nothing;
  Model model(one_row(400'000), 2, 11);
  Places places(model);
  Place closed{0, 1 << 20, 0};
  int full = ::open("/dev/full", O_WRONLY);
  for (int threads : {1, 4}) {
    Error read = failure(model.plan({places.source(0, 2), closed}, places.result(0)), with(400'000, threads));
    CHECK(read.kind == ErrorKind::kRead && read.code == EBADF && read.fd == closed.fd);
    Error write = failure(model.plan({places.source(0, 2), places.source(1, 0)}, {0, full, 0}), with(400'000, threads));
    CHECK(write.kind == ErrorKind::kWrite && write.code == ENOSPC && write.fd == full);
  }
  ::close(full);
}

TEST(staged_stops_where_the_device_fails) {
  NothingLeft nothing;
  fake::most_microseconds.store(200);
  Model model(one_row(400'000), 2, 12);
  Places places(model);
  Plan plan = places.plan(2, 2);
  for (int call : {1, 2, 5}) {
    fake::failing_launch.store(call);
    CHECK(failure(plan, with(400'000, 3)).kind == ErrorKind::kDevice);
    fake::failing_wait.store(call);
    CHECK(failure(plan, with(400'000, 3)).kind == ErrorKind::kDevice);
  }
  fake::failing_allocation.store(1);
  CHECK(failure(plan, with(4'000'000, 3)).kind == ErrorKind::kMemory);
  fake::failing_pinning.store(1);
  CHECK(failure(plan, with(500'000, 3)).kind == ErrorKind::kMemory);
  check_run(plan, model, with(400'000, 3), "afterwards");
}

TEST(staged_refuses_too_little_memory) {
  Model model(one_row(1000), 2, 13);
  Places places(model);
  Plan plan = places.plan(2, 2);
  CHECK(failure(plan, with(staged_memory(plan) - 1, 1)).kind == ErrorKind::kInvalid);
  CHECK(failure(plan, with(0, 1)).kind == ErrorKind::kInvalid);
}

TEST(staged_is_stopped_by_its_tick) {
  NothingLeft nothing;
  fake::most_microseconds.store(2000);
  // Holes read as zeros: many chunks at no cost but time.
  constexpr std::uint64_t kElements = 64u << 20;
  File sparse, result;
  sparse.truncate(4 * kElements);
  Plan plan;
  plan.sources = {{0, sparse.fd(), kF32}};
  plan.weights = {1.0};
  plan.weights_f32 = {1.0f};
  append_segment(plan, {kElements, 0, 1, {0, result.fd(), kF32}, 1.0, kAccF64});
  for (int threads : {1, 4}) {
    int ticks = 0;
    Tick stop_at_second = [&](std::uint64_t) { return ++ticks < 2; };
    StagedOutcome outcome = run_staged(plan, with(1 << 20, threads), stop_at_second);
    CHECK(!outcome.finished);
    CHECK(ticks == 2);
  }
}

TEST(staged_ends_its_threads_when_the_tick_throws) {
  NothingLeft nothing;
  fake::most_microseconds.store(2000);
  Model model({{4'000'000, kF32, false}}, 1, 14);
  Places places(model);
  Tick failing = [](std::uint64_t) -> bool { throw Error(ErrorKind::kIsa, "tick"); };
  Error error = THROWN(run_staged(places.plan(2, 2), with(64 << 10, 4), failing));
  CHECK(error.kind == ErrorKind::kIsa);
}

TEST(staged_of_nothing_needs_no_device) {
  Plan empty;
  CHECK(run_staged(empty, with(0, 4), kGoOn).finished);
  Model model({{0, kF32, false}, {0, kRaw, false}}, 2, 15);
  Places places(model);
  check_run(places.plan(2, 0), model, with(staged_memory(places.plan(2, 0)), 4), "nothing");
}

#if !defined(__SANITIZE_THREAD__)  // which would notice as well, and end the program
// The tests above would not be worth much if they passed on a device where nobody waits.
TEST(staged_without_waiting_is_noticed) {
  NothingLeft nothing;
  fake::most_microseconds.store(3000);
  Model model(one_row(300'000), 2, 16);
  Places places(model);
  for (std::atomic<bool>* fault : {&fake::streams_do_not_wait, &fake::hosts_do_not_wait}) {
    bool noticed = false;
    for (int i = 0; i < 20 && !noticed; ++i) {
      fault->store(true);
      run_staged(places.plan(2, 2), with(200'000, 2), kGoOn);
      fault->store(false);
      noticed = places.read(2) != model.expected();
    }
    CHECK(noticed);
  }
}
#endif
