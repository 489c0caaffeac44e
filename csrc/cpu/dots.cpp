// SPDX-License-Identifier: MIT
#include "dots.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <system_error>
#include <thread>

#include "../dot_join.h"
#include "../float_environment.h"

namespace soup {
namespace {

// As in logits.cpp: below this, starting a thread costs more than it saves; bytes a thread takes at a time.
constexpr std::uint64_t kInlineBytes = 1u << 20;
constexpr std::uint64_t kChunkBytes = 512u << 10;
constexpr auto kTickInterval = std::chrono::milliseconds(50);

class Tiles {
 public:
  Tiles(const DotPlan& plan, const KernelTable& kernels, int threads, double* sums)
      : plan_(plan), dot_tile_(kernels.dot_tile), sums_(sums) {
    std::uint64_t tile_bytes = plan.bytes / std::max<std::uint64_t>(1, plan.tiles);
    chunk_ = std::max<std::uint64_t>(1, kChunkBytes / std::max<std::uint64_t>(1, tile_bytes));
    std::uint64_t wanted = plan.bytes < kInlineBytes ? 1 : static_cast<std::uint64_t>(threads);
    threads_ = std::max<std::uint64_t>(1, std::min(wanted, (plan.tiles + chunk_ - 1) / chunk_));
  }

  bool run(const std::function<bool()>& keep_going) {
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
  void work(const std::function<bool()>* keep_going) {
    FloatEnvironment environment;
    std::vector<const void*> sources(plan_.count);
    auto last_tick = std::chrono::steady_clock::now();
    while (!stopped_.load(std::memory_order_relaxed)) {
      std::uint64_t first = next_.fetch_add(chunk_);
      if (first >= plan_.tiles) return;
      std::uint64_t end = std::min(first + chunk_, plan_.tiles);
      for (std::uint64_t tile = first; tile < end; ++tile) dot(tile, sources);
      if (keep_going == nullptr) continue;
      auto now = std::chrono::steady_clock::now();
      if (now - last_tick < kTickInterval) continue;
      last_tick = now;
      if (!(*keep_going)()) stopped_.store(true);
    }
  }

  void dot(std::uint64_t tile, std::vector<const void*>& sources) const {
    auto after = [](std::uint64_t t, const DotPlan::Segment& segment) { return t < segment.first_tile; };
    auto next = std::upper_bound(plan_.segments.begin(), plan_.segments.end(), tile, after);
    auto s = static_cast<std::size_t>(next - plan_.segments.begin()) - 1;
    const DotPlan::Segment& segment = plan_.segments[s];
    std::uint64_t begin = (tile - segment.first_tile) * kDotTile;
    const std::uint8_t* dtypes = plan_.dtypes.data() + s * plan_.count;
    for (std::size_t k = 0; k < plan_.count; ++k) {
      sources[k] = reinterpret_cast<const void*>(plan_.at[s * plan_.count + k] + begin * item_size(dtypes[k]));
    }
    DotTileArgs args;
    args.gradient = reinterpret_cast<const void*>(segment.gradient + begin * item_size(segment.dtype));
    args.sources = sources.data();
    args.dtypes = dtypes;
    args.gradient_dtype = segment.dtype;
    args.count = plan_.count;
    args.n = static_cast<std::size_t>(std::min<std::uint64_t>(kDotTile, segment.n - begin));
    args.sums = sums_ + tile;
    args.stride = plan_.tiles;
    dot_tile_(args);
  }

  const DotPlan& plan_;
  void (*const dot_tile_)(const DotTileArgs&);
  double* const sums_;
  std::uint64_t chunk_ = 1;  // tiles
  std::uint64_t threads_ = 1;
  std::atomic<std::uint64_t> next_{0};
  std::atomic<bool> stopped_{false};
};

}  // namespace

bool run_dots(const DotPlan& plan, const KernelTable& kernels, int threads, const std::function<bool()>& keep_going,
              double* out) {
  std::vector<double> sums(plan.count * plan.tiles);
  if (!Tiles(plan, kernels, threads, sums.data()).run(keep_going)) return false;
  FloatEnvironment environment;
  for (std::size_t k = 0; k < plan.count; ++k) {
    for (std::size_t s = 0; s < plan.segments.size(); ++s) {
      const DotPlan::Segment& segment = plan.segments[s];
      const double* first = sums.data() + k * plan.tiles + segment.first_tile;
      std::uint64_t tiles = DotPlan::tiles_of(segment.n);
      double rows[kDotSums] = {};
      for (std::uint64_t t = 0; t < tiles; ++t) add_tile(rows, 1, t, first + t, 1);
      join_tiles(rows, 1, tiles);
      out[k * plan.segments.size() + s] = rows[0];
    }
  }
  return true;
}

}  // namespace soup
