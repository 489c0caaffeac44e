// SPDX-License-Identifier: MIT
// Reads past the page cache: the bytes of the file at every alignment, whatever the system refuses or cuts short, the
// same bits and the same errors of a run, and how much of a file the page cache is said to hold.
#include <fcntl.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/io/direct.h"
#include "../../csrc/io/mapped.h"
#include "../../csrc/io/positional.h"
#include "../../csrc/io/run.h"
#include "check.h"
#include "direct_reads.h"
#include "models.h"

using namespace soup;
using direct_reads::Behaviour;

namespace {

constexpr std::size_t kBlock = DirectFiles::kBlock;
const Tick kGoOn = [](std::uint64_t) { return true; };

// A file without a name on the disk of the working directory, not in the page cache.
class DiskFile {
 public:
  explicit DiskFile(const std::vector<unsigned char>& bytes) {
    char name[] = "direct-test-XXXXXX";
    fd_ = ::mkstemp(name);
    if (fd_ < 0 || ::unlink(name) != 0) std::abort();
    write_at(fd_, bytes.data(), bytes.size(), 0);
    evict();
  }
  ~DiskFile() { ::close(fd_); }
  DiskFile(const DiskFile&) = delete;
  DiskFile& operator=(const DiskFile&) = delete;

  int fd() const { return fd_; }
  Place place() const { return {0, fd_, 0}; }
  void evict() const {
    if (::fsync(fd_) != 0 || ::posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED) != 0) std::abort();
  }
  void truncate(std::size_t bytes) const {
    if (::ftruncate(fd_, static_cast<off_t>(bytes)) != 0) std::abort();
  }
  // Whether this disk must be read directly; on others it depends.
  bool certain() const {
    struct statfs system;
    return ::fstatfs(fd_, &system) == 0 && (system.f_type == 0xEF53 || system.f_type == 0x58465342);
  }

 private:
  int fd_;
};

class Behaving {
 public:
  explicit Behaving(Behaviour behaviour) { direct_reads::behaviour.store(behaviour); }
  ~Behaving() { direct_reads::behaviour.store(Behaviour::kAsIs); }
};

class Buffer {
 public:
  explicit Buffer(std::size_t bytes)
      : at_(static_cast<char*>(std::aligned_alloc(kBlock, (bytes + DirectFiles::kSlack + kBlock) / kBlock * kBlock))) {}
  ~Buffer() { std::free(at_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  char* at() const { return at_; }

 private:
  char* at_;
};

std::vector<unsigned char> counted(std::size_t bytes) {
  std::vector<unsigned char> content(bytes);
  for (std::size_t i = 0; i < bytes; ++i) content[i] = static_cast<unsigned char>(i * 7 + i / 251);
  return content;
}

Plan reading(int fd) {
  Plan plan;
  plan.sources.push_back({0, fd, kRaw});
  return plan;
}

// Every element type and sizes off every block; 3 MB, so that threads are started.
std::vector<RowSpec> rows() {
  return {{200'003, kF32, false}, {77, kRaw, false}, {100'001, kF64, true},
          {65, kBF16, true},      {1, kRaw, false},  {300'007, kF16, false}};
}

}  // namespace

TEST(direct_bytes_are_those_of_the_file_at_every_alignment) {
  for (std::size_t size : {5 * kBlock + 777, 6 * kBlock, 5 * kBlock + 512}) {
    std::vector<unsigned char> content = counted(size);
    DiskFile file(content);
    for (Behaviour behaviour : {Behaviour::kAsIs, Behaviour::kShort, Behaviour::kRefused}) {
      Behaving behaving(behaviour);
      DirectFiles files(reading(file.fd()));
      std::size_t calls = direct_reads::calls.load(), came = direct_reads::bytes.load();
      for (std::size_t offset : {std::size_t{0}, std::size_t{1}, std::size_t{511}, std::size_t{512}, kBlock - 1, kBlock,
                                 kBlock + 1, 3 * kBlock - 64, 5 * kBlock, size - 1}) {
        for (std::size_t wanted :
             {std::size_t{0}, std::size_t{1}, std::size_t{64}, kBlock - 1, kBlock, kBlock + 1, 3 * kBlock, size}) {
          std::size_t bytes = std::min(wanted, size - offset);
          Buffer buffer(bytes);
          const char* at = files.read(file.fd(), buffer.at(), bytes, offset);
          CHECK_CASE(std::equal(at, at + bytes, reinterpret_cast<const char*>(&content[offset])),
                     std::to_string(offset) + " " + std::to_string(bytes));
        }
      }
      if (!file.certain()) continue;
      // One refusal is enough to know.
      if (behaviour == Behaviour::kRefused) CHECK(direct_reads::calls.load() == calls + 1);
      CHECK((direct_reads::bytes.load() > came) == (behaviour != Behaviour::kRefused));
    }
  }
}

TEST(direct_read_past_the_end_says_where_the_file_ends) {
  for (std::size_t size : {2 * kBlock, 2 * kBlock + 100, kBlock + 512}) {
    DiskFile file(counted(size));
    DirectFiles files(reading(file.fd()));
    Buffer buffer(4 * kBlock);
    for (std::size_t offset : {std::size_t{0}, std::size_t{9}, kBlock}) {
      Error error = THROWN(files.read(file.fd(), buffer.at(), 3 * kBlock, offset));
      CHECK(error.kind == ErrorKind::kShortRead && error.fd == file.fd() && error.offset == size);
    }
    Error beyond = THROWN(files.read(file.fd(), buffer.at(), 5, 10 * kBlock + 3));
    CHECK(beyond.kind == ErrorKind::kShortRead && beyond.offset == 10 * kBlock + 3);
  }
}

TEST(direct_reads_see_what_was_just_written) {
  std::vector<unsigned char> content = counted(3 * kBlock);
  DiskFile file(content);
  DirectFiles files(reading(file.fd()));
  Buffer buffer(content.size());
  for (unsigned char value = 1; value < 20; ++value) {
    write_at(file.fd(), &value, 1, kBlock + value);
    content[kBlock + value] = value;
    const char* at = files.read(file.fd(), buffer.at(), content.size(), 0);
    CHECK_CASE(std::equal(content.begin(), content.end(), reinterpret_cast<const unsigned char*>(at)),
               std::to_string(value));
  }
}

TEST(files_that_are_not_on_a_disk_are_read_as_ever) {
  std::vector<unsigned char> content = counted(2 * kBlock + 5);
  File memory(content);
  std::size_t calls = direct_reads::calls.load();
  DirectFiles files(reading(memory.fd()));
  Buffer buffer(content.size());
  const char* at = files.read(memory.fd(), buffer.at(), content.size() - 3, 3);
  CHECK(std::equal(content.begin() + 3, content.end(), reinterpret_cast<const unsigned char*>(at)));
  CHECK(direct_reads::calls.load() == calls);
  CHECK(THROWN(files.read(1 << 20, buffer.at(), 1, 0)).kind == ErrorKind::kRead);
}

TEST(run_with_direct_reads_has_the_same_bits_whatever_is_cached_or_refused) {
  Model model(rows(), 3, 11);
  std::vector<std::unique_ptr<DiskFile>> files;
  std::vector<Place> sources;
  for (std::size_t k = 0; k < model.count(); ++k) {
    files.push_back(std::make_unique<DiskFile>(model.source(k)));
    sources.push_back(files.back()->place());
  }
  for (Behaviour behaviour : {Behaviour::kAsIs, Behaviour::kShort, Behaviour::kRefused}) {
    Behaving behaving(behaviour);
    for (std::size_t cached = 0; cached <= files.size(); ++cached) {
      for (int threads : {1, 8}) {
        File result;
        Plan plan = model.plan(sources, in_file(result));
        std::size_t least = plan_minimum_buffer(plan);
        for (std::size_t buffer : {least, least + 40'000, std::size_t{300'000}}) {
          for (std::size_t k = 0; k < files.size(); ++k) {
            files[k]->evict();
            Buffer bytes(model.bytes());
            if (k < cached) read_at(files[k]->fd(), bytes.at(), model.bytes(), 0);
          }
          std::size_t came = direct_reads::bytes.load();
          Outcome outcome = run_plan(plan, kernels_for("auto"), {threads, buffer, true}, kGoOn);
          std::string what =
              std::to_string(cached) + " threads " + std::to_string(threads) + " buffer " + std::to_string(buffer);
          CHECK_CASE(outcome.finished && outcome.nonfinite == model.nonfinite(), what);
          CHECK_CASE(result.read(model.bytes()) == model.expected(), what);
          bool must = files[0]->certain() && cached == 0 && buffer == 300'000 && behaviour != Behaviour::kRefused;
          if (must) CHECK_CASE(direct_reads::bytes.load() >= came + model.bytes(), what);
        }
      }
    }
  }
}

TEST(run_with_direct_reads_leaves_the_page_cache_as_it_is) {
  Model model({{4'000'000, kF32, false}}, 2, 13);
  DiskFile one(model.source(0)), two(model.source(1));
  std::vector<unsigned char> out(model.bytes()), head(600 << 10);
  Plan plan = model.plan({one.place(), two.place()}, in_memory(out.data()));
  for (const DiskFile* file : {&one, &two}) {  // as one who reads their headers leaves them
    (void)::posix_fadvise(file->fd(), 0, 0, POSIX_FADV_SEQUENTIAL);
    read_at(file->fd(), head.data(), head.size(), 0);
  }
  double before = MappedFiles(plan).absent_share();  // some of it may be on its way still
  Outcome outcome = run_plan(plan, kernels_for("auto"), {2, 256 << 10, true}, kGoOn);
  CHECK(outcome.finished && out == model.expected());
  double after = MappedFiles(plan).absent_share();
  if (one.certain()) CHECK_CASE(after > before - 0.25, std::to_string(before) + " " + std::to_string(after));
}

TEST(run_with_direct_reads_stops_at_a_short_file) {
  Model model({{400'000, kF32, false}}, 2, 12);
  DiskFile first(model.source(0)), second(model.source(1));
  for (std::size_t size : {std::size_t{1'000'001}, 244 * kBlock}) {
    second.truncate(size);
    for (int threads : {1, 4}) {
      File result;
      first.evict();
      second.evict();
      Plan plan = model.plan({first.place(), second.place()}, in_file(result));
      Error error = THROWN(run_plan(plan, kernels_for("auto"), {threads, 96 << 10, true}, kGoOn));
      CHECK(error.kind == ErrorKind::kShortRead && error.fd == second.fd());
      CHECK(error.offset >= size && error.offset < model.bytes());
    }
  }
}

TEST(run_with_direct_reads_reports_a_file_that_is_cut_short_meanwhile) {
  for (int round = 0; round < 8; ++round) {
    Model model({{300'000, kF32, false}}, 2, static_cast<std::uint64_t>(round));
    DiskFile one(model.source(0)), two(model.source(1));
    std::vector<unsigned char> out(model.bytes());
    Plan plan = model.plan({one.place(), two.place()}, in_memory(out.data()));
    std::atomic<bool> go{false};
    std::thread cutter([&] {
      while (!go.load()) std::this_thread::yield();
      two.truncate(kBlock * static_cast<std::size_t>(round + 1) + static_cast<std::size_t>(round % 2));
    });
    go.store(true);
    bool refused = false;
    try {
      run_plan(plan, kernels_for("auto"), {2, 1 << 16, true}, kGoOn);
    } catch (const Error& error) {
      refused = true;
      CHECK(error.kind == ErrorKind::kShortRead && error.fd == two.fd());
    }
    cutter.join();
    CHECK_CASE(refused || out == model.expected(), std::to_string(round));
  }
}

TEST(share_that_the_page_cache_lacks_is_by_size_and_none_of_files_in_memory) {
  std::vector<unsigned char> large = counted(300 * kBlock + 1), small = counted(100 * kBlock);
  DiskFile away(large), there(small);
  File memory(large);
  Plan none = reading(memory.fd());
  CHECK(MappedFiles(none).absent_share() == 0.0);
  if (!away.certain()) return;
  std::vector<unsigned char> copy(small.size());
  read_at(there.fd(), copy.data(), copy.size(), 0);
  Plan both = reading(away.fd());
  both.sources.push_back({0, there.fd(), kRaw});
  double share = MappedFiles(both).absent_share();
  CHECK_CASE(share > 0.74 && share < 0.76, std::to_string(share));
  there.evict();
  CHECK(MappedFiles(both).absent_share() == 1.0);
}
