// SPDX-License-Identifier: MIT
#include "logits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <system_error>
#include <thread>

#include "../float_environment.h"
#include "../scalar.h"
#include "tables.h"

namespace soup {
namespace {

// As in io/run.cpp: below this, starting a thread costs more than it saves.
constexpr std::uint64_t kInlineBytes = 1u << 20;
// Bytes a thread takes at a time.
constexpr std::uint64_t kChunkBytes = 512u << 10;
constexpr auto kTickInterval = std::chrono::milliseconds(50);

class Work {
 public:
  Work(const LogitArgs& args, const KernelTable& kernels, int threads)
      : args_(args),
        score_rows_(
            (args.dtype == kF64 || (args.base != nullptr && args.base_dtype == kF64) ? kGenericKernels : kernels)
                .score_rows) {
    std::uint64_t row_bytes = std::max<std::uint64_t>(1, args.candidates * args.classes * item_size(args.dtype));
    rows_ = std::max<std::uint64_t>(1, kChunkBytes / row_bytes);
    chunks_ = (args.rows + rows_ - 1) / rows_;
    std::uint64_t wanted = row_bytes * args.rows < kInlineBytes ? 1 : static_cast<std::uint64_t>(threads);
    threads_ = std::max<std::uint64_t>(1, std::min(wanted, chunks_));
  }

  bool run(const KeepGoing& keep_going) {
    std::vector<std::thread> workers;
    workers.reserve(threads_);  // growing could throw while threads run
    for (std::uint64_t t = 1; t < threads_; ++t) {
      try {
        workers.emplace_back([this] { work(nullptr); });
      } catch (const std::system_error&) {  // no more threads to be had: go on with those that run
        break;
      }
    }
    work(&keep_going);
    for (std::thread& worker : workers) worker.join();
    return !stopped_.load();
  }

 private:
  // Fetches chunks until none is left.
  void work(const KeepGoing* keep_going) {
    FloatEnvironment environment;
    auto last_tick = std::chrono::steady_clock::now();
    while (!stopped_.load(std::memory_order_relaxed)) {
      std::uint64_t chunk = next_.fetch_add(1);
      if (chunk >= chunks_) return;
      std::uint64_t row = chunk * rows_;
      score_rows_(args_, row, std::min<std::uint64_t>(row + rows_, args_.rows));
      if (keep_going == nullptr) continue;
      auto now = std::chrono::steady_clock::now();
      if (now - last_tick < kTickInterval) continue;
      last_tick = now;
      if (!(*keep_going)()) stopped_.store(true);
    }
  }

  const LogitArgs& args_;
  void (*const score_rows_)(const LogitArgs&, std::size_t, std::size_t);
  std::uint64_t rows_ = 1;
  std::uint64_t chunks_ = 0;
  std::uint64_t threads_ = 1;
  std::atomic<std::uint64_t> next_{0};
  std::atomic<bool> stopped_{false};
};

// In the order of the contract: kTotals sums side by side, joined as a tree.
double total_likelihood(const std::int64_t* rank, const double* nll, std::size_t rows) {
  double sums[kTotals] = {};
  for (std::size_t n = 0; n < rows; ++n) {
    if (rank[n] != -2) sums[n % kTotals] += nll[n];
  }
  for (std::size_t half = kTotals / 2; half > 0; half /= 2) {
    for (std::size_t i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return canonical_f64(sums[0]);
}

}  // namespace

bool score_logits(const LogitArgs& args, const KernelTable& kernels, int threads, const KeepGoing& keep_going) {
  return Work(args, kernels, threads).run(keep_going);
}

void total_logits(const LogitArgs& args, const std::vector<std::int64_t>& k, std::int64_t* top, std::int64_t* nan_rows,
                  double* nll) {
  for (std::size_t m = 0; m < args.candidates; ++m) {
    const std::int64_t* rank = args.rank + m * args.rows;
    nan_rows[m] = std::count(rank, rank + args.rows, -1);
    for (std::size_t i = 0; i < k.size(); ++i) {
      top[i * args.candidates + m] =
          std::count_if(rank, rank + args.rows, [limit = k[i]](std::int64_t r) { return r >= 0 && r < limit; });
    }
    nll[m] = args.nll == nullptr ? 0.0 : total_likelihood(rank, args.nll + m * args.rows, args.rows);
  }
}

}  // namespace soup
