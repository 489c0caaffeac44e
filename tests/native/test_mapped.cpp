// SPDX-License-Identifier: MIT
// Mapped sources: where they are, that a file cut short shows as such and not as SIGBUS, and that a fault of somebody
// else's still goes to whoever handles it.
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/io/bus_guard.h"
#include "../../csrc/io/mapped.h"
#include "../../csrc/io/run.h"
#include "check.h"
#include "models.h"

using namespace soup;

namespace {

constexpr std::size_t kPage = 4096;

std::vector<unsigned char> counted(std::size_t bytes) {
  std::vector<unsigned char> content(bytes);
  for (std::size_t i = 0; i < bytes; ++i) content[i] = static_cast<unsigned char>(i % 251 + 1);
  return content;
}

// A plan whose sources are these files, of one byte row each.
Plan reading(const std::vector<const File*>& files) {
  Plan plan;
  for (const File* file : files) plan.sources.push_back({0, file->fd(), kRaw});
  return plan;
}

class Mapped {
 public:
  explicit Mapped(const File& file, std::size_t bytes) : bytes_(bytes) {
    at_ = static_cast<char*>(::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file.fd(), 0));
  }
  ~Mapped() { ::munmap(at_, bytes_); }
  char* at() const { return at_; }

 private:
  char* at_;
  std::size_t bytes_;
};

sigjmp_buf after_fault;
std::atomic<int> faults{0};

void count_fault(int) {
  faults.fetch_add(1);
  siglongjmp(after_fault, 1);
}

}  // namespace

TEST(mapped_bytes_are_those_of_the_file) {
  std::vector<unsigned char> content = counted(3 * kPage + 100);
  File one(content);
  File empty;
  Plan plan = reading({&one, &empty});
  MappedFiles files(plan);
  for (std::size_t offset : {std::size_t{0}, std::size_t{1}, kPage - 1, kPage, 3 * kPage}) {
    for (std::size_t bytes : {std::size_t{1}, std::size_t{100}}) {
      const char* at = files.find(one.fd(), offset, bytes);
      // Not being told where is no fault: then the bytes are read.
      bool same = at == nullptr || std::equal(at, at + bytes, reinterpret_cast<const char*>(&content[offset]));
      CHECK_CASE(same, std::to_string(offset));
    }
  }
  CHECK(files.find(one.fd(), content.size() - 1, 2) == nullptr);
  CHECK(files.find(one.fd(), ~std::uint64_t{0}, 1) == nullptr);
  CHECK(files.find(empty.fd(), 0, 1) == nullptr);
  CHECK(files.find(12345, 0, 1) == nullptr);
  files.check(one.fd(), 0);
}

TEST(guard_turns_a_file_cut_short_into_zeros_and_a_flag) {
  File file(counted(4 * kPage));
  Mapped mapped(file, 4 * kPage);
  BusGuard guard(mapped.at(), 4 * kPage);
  CHECK(!guard.lost());
  CHECK(static_cast<volatile char*>(mapped.at())[3 * kPage] != 0);
  file.truncate(kPage);
  CHECK(static_cast<volatile char*>(mapped.at())[3 * kPage] == 0);
  CHECK(guard.lost());
}

TEST(more_mappings_than_guards_are_read_instead) {
  File file(counted(kPage));
  Mapped mapped(file, kPage);
  std::vector<std::unique_ptr<BusGuard>> all;
  while (all.empty() || all.back()->protects()) {
    all.push_back(std::make_unique<BusGuard>(mapped.at(), kPage));
    CHECK(all.size() < 100'000);
  }
  CHECK(!all.back()->lost());
  Plan plan = reading({&file});
  MappedFiles none(plan);
  CHECK(none.find(file.fd(), 0, 1) == nullptr);
  none.check(file.fd(), 0);
  all.clear();
  MappedFiles again(plan);
  again.check(file.fd(), 0);
}

TEST(guards_in_many_threads_mind_their_own_files) {
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([t, &wrong] {
      for (int i = 0; i < 50; ++i) {
        File file(counted(2 * kPage));
        Mapped mapped(file, 2 * kPage);
        BusGuard guard(mapped.at(), 2 * kPage);
        bool cut = (t + i) % 2 == 0;
        if (cut) file.truncate(0);
        char last = static_cast<volatile char*>(mapped.at())[kPage];
        if ((last == 0) != cut || guard.lost() != cut) wrong.fetch_add(1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong.load() == 0);
}

TEST(faults_elsewhere_go_to_the_handler_that_was_there) {
  struct sigaction mine = {};
  struct sigaction before = {};
  mine.sa_handler = &count_fault;
  mine.sa_flags = SA_NODEFER;
  ::sigaction(SIGBUS, &mine, &before);
  {
    File guarded_file(counted(kPage));
    Mapped guarded(guarded_file, kPage);
    BusGuard guard(guarded.at(), kPage);
    File other_file(counted(kPage));
    Mapped other(other_file, kPage);
    other_file.truncate(0);
    faults.store(0);
    if (sigsetjmp(after_fault, 1) == 0) (void)static_cast<volatile char*>(other.at())[0];
    CHECK(faults.load() == 1);
    CHECK(!guard.lost());
  }
  struct sigaction now = {};
  ::sigaction(SIGBUS, &before, &now);
  CHECK(now.sa_handler == &count_fault);
}

TEST(run_reports_a_file_that_is_cut_short_meanwhile) {
  for (int round = 0; round < 12; ++round) {
    Model model({{300'000, kF32, false}}, 3, static_cast<std::uint64_t>(round));
    File one(model.source(0));
    File two(model.source(1));
    File three(model.source(2));
    std::vector<unsigned char> out(model.bytes());
    Plan plan = model.plan({in_file(one), in_file(two), in_file(three)}, in_memory(out.data()));
    std::atomic<bool> go{false};
    std::thread cutter([&] {
      while (!go.load()) std::this_thread::yield();
      two.truncate(kPage * static_cast<std::size_t>(round + 1));
    });
    go.store(true);
    bool refused = false;
    try {
      run_plan(plan, kernels_for("auto"), {2, 1 << 16}, [](std::uint64_t) { return true; });
    } catch (const Error& error) {
      refused = true;
      CHECK(error.kind == ErrorKind::kShortRead);
      CHECK(error.fd == two.fd());
    }
    cutter.join();
    CHECK_CASE(refused || out == model.expected(), std::to_string(round));
  }
}
