// SPDX-License-Identifier: MIT
// A block of lanes for emulate.h: fibers, or threads with SOUP_EMULATE_THREADS, and where they wait for each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#if defined(SOUP_EMULATE_THREADS)
#include <condition_variable>
#include <mutex>
#include <thread>
#endif

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace emulate {

// Negative controls: false where SOUP_EMULATE_WITHOUT in the environment is "barriers" or "shuffles".
bool barriers();
bool shuffles();

constexpr int kWarp = 32;

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "equal sizes");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// A mistake of the kernel's, which no test could go on after.
[[noreturn]] inline void stop(const char* what) {
  std::fprintf(stderr, "emulate.h: %s\n", what);
  std::abort();
}

template <class T, class Update>
T atomic_update(T* p, const Update& update) {
  T old;
  __atomic_load(p, &old, __ATOMIC_SEQ_CST);
  for (;;) {
    T next = update(old);
    if (__atomic_compare_exchange(p, &old, &next, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return old;
  }
}

struct Block;

// What a lane waits for: all of its block, or the lanes of its warp in `mask`.
enum class Wait : std::uint8_t { kNone, kBlock, kLanes, kDone };

struct Lane {
  uint3 thread;
  unsigned number;  // in the block
  Block* block;
  Wait wait;
  unsigned mask;
  std::uint64_t value;          // brought along
  std::uint64_t others[kWarp];  // what the lanes of the warp brought
  int counted;                  // of sync_block

  int in_warp() const { return static_cast<int>(number % kWarp); }
  unsigned warp() const { return number / kWarp; }
};

struct Block {
  uint3 index;
  dim3 size;
  dim3 grid;
  std::vector<Lane> lanes;
  std::function<void()> body;
  unsigned arrived = 0;
  int counted = 0;
#if defined(SOUP_EMULATE_THREADS)
  struct Meeting {
    std::mutex mutex;
    std::condition_variable changed;
  };
  Meeting all;
  std::vector<Meeting> warps;
#endif
};

Lane& lane();            // the one that runs
void run(Block& block);  // all lanes to their ends; block.index, .size, .grid and .body are set
void wait_for_warp(std::uint64_t value, unsigned mask);
int wait_for_block(int count);

// The lanes that wait together with this one, once all of them do: they find each other's values.
inline bool warp_complete(Lane& last) {
  Block& block = *last.block;
  std::size_t first = static_cast<std::size_t>(last.warp()) * kWarp;
  for (std::size_t i = 0; i < kWarp; ++i) {
    if ((last.mask >> i & 1u) == 0) continue;
    if (first + i >= block.lanes.size()) stop("a lane beyond the block is named in a mask");
    Lane& other = block.lanes[first + i];
    if (other.wait == Wait::kDone) stop("a lane that has ended is named in a mask");
    if (other.wait != Wait::kLanes || other.mask != last.mask) return false;
  }
  for (std::size_t i = 0; i < kWarp; ++i) {
    if ((last.mask >> i & 1u) == 0) continue;
    Lane& to = block.lanes[first + i];
    for (std::size_t j = 0; j < kWarp; ++j) {
      if ((last.mask >> j & 1u) != 0) to.others[j] = block.lanes[first + j].value;
    }
  }
  for (std::size_t i = 0; i < kWarp; ++i) {
    if ((last.mask >> i & 1u) != 0) block.lanes[first + i].wait = Wait::kNone;
  }
  return true;
}

inline int sync_block(int count) { return barriers() ? wait_for_block(count) : count; }

inline void sync_warp(unsigned mask) {
  if (barriers()) wait_for_warp(0, mask);
}

template <class T>
T exchange(unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 8, "at most 8 bytes a lane");
  if ((mask >> lane().in_warp() & 1u) == 0) stop("a lane is not in its own mask");
  if (!shuffles()) return value;
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  wait_for_warp(bits, mask);
  if ((mask >> source & 1u) == 0) stop("a lane asks one that is not in the mask");
  std::memcpy(&value, &lane().others[source], sizeof(T));
  return value;
}

inline unsigned ballot(unsigned mask, bool predicate) {
  unsigned own = static_cast<unsigned>(predicate) << lane().in_warp();
  if (!shuffles()) return own;
  wait_for_warp(predicate ? 1 : 0, mask);
  unsigned votes = 0;
  for (int i = 0; i < kWarp; ++i) {
    if ((mask >> i & 1u) != 0 && lane().others[i] != 0) votes |= 1u << i;
  }
  return votes;
}

// Numbers for shuffled orders: the same in every run.
class Shuffle {
 public:
  void operator()(std::vector<unsigned>& items) {
    for (std::size_t i = items.size(); i > 1; --i) {
      state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
      std::swap(items[i - 1], items[static_cast<std::size_t>(state_ >> 33) % i]);
    }
  }

 private:
  std::uint64_t state_ = 1;
};

}  // namespace emulate
