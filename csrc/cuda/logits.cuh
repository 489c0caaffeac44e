// SPDX-License-Identifier: MIT
// Ranks and likelihoods of rows of logits (the contract is in kernels.h). The bytes are read once: to registers, where
// the largest is found, and as values to shared memory, where each strip's exponentials are summed by four lanes.
#pragma once

#include "logit_area.cuh"
#include "logit_piece.cuh"

namespace soup {
namespace cuda {

template <class T, uint8_t kType, bool kBase, bool kRanks>
class Scorer {
  static constexpr int kSize = kPieceSize<T, kType>;
  static constexpr int kBatch = 8;  // pieces on their way at once
  static constexpr int kStripInts = static_cast<int>(kStrip);
  static constexpr bool kKeeps = !kRanks;
  static constexpr bool kBaseKept = kBase && sizeof(T) == 4;
  using Row = Piece<T, kType>;

 public:
  __device__ Scorer(const LogitArgs& args, const LogitGrid& grid, Area<T, kKeeps, kBase>& area, RowState* states,
                    unsigned long long* bad_row)
      : args_(args), grid_(grid), area_(area), group_(grid, area.boxes), factors_(args) {
    states_ = states;
    bad_row_ = bad_row;
    store_ = grid.together ? 0 : group_.warp();
    int tile = store_ * kStripsPerWarp<T> * kPitch, row = tile + group_.row() * grid.strips * kPitch;
    tile_ = kKeeps ? area.values + tile : nullptr;
    mine_ = kKeeps ? area.values + row : nullptr;
    base_ = kBaseKept ? area.base + row : nullptr;
  }

  __device__ void run() {
    unsigned long long unit = blockIdx.x, units = gridDim.x;
    if (!grid_.together) {
      unit = unit * kWarpsPerBlock<T> + static_cast<unsigned>(group_.warp());
      units *= kWarpsPerBlock<T>;
    }
    unsigned long long tile = grid_.tiles * unit / units;
    unsigned long long end = grid_.tiles * (unit + 1) / units;
    unsigned step = static_cast<unsigned>(grid_.rows);
    unsigned long long item = tile * step + static_cast<unsigned>(group_.row());
    Place place(grid_, item);
    for (; tile < end; ++tile) {
      Row row = piece_of<T, kType>(args_, grid_, group_, place, item < grid_.items, bad_row_);
      if constexpr (kRanks) {
        rank(row);
      } else {
        score(row);
      }
      item += step;
      place.advance(grid_, step);
    }
    if constexpr (!kRanks) flush();
  }

 private:
  // Ranks alone: one pass, and nothing is kept.
  __device__ void rank(const Row& row) {
    target_ = label_value(row);
    ahead_ = 0;
    T highest = group_.largest(take_pieces(row));
    int ahead = group_.sum(ahead_);
    if (group_.member() != 0 || !row.present) return;
    ahead = row.ignored ? -2 : highest != highest ? -1 : ahead;
    unsigned long long at = row.place(args_, grid_);
    if (grid_.blocks == 1) {
      write_scores(args_, at, ahead, -1, not_a_number(), not_a_number(), not_a_number());
    } else {
      states_[at].ahead = ahead;
      states_[at].nan = ahead == -1;
    }
  }

  __device__ void score(const Row& row) {
    if (pending_ + grid_.rows > 32) flush();
    T highest = take_pieces(row);
    int end = (row.count + kStripInts - 1) / kStripInts * kStripInts;
    for (int i = row.count + group_.member(); i < end; i += group_.size()) mine_[spot(i)] = static_cast<T>(-infinity());
    group_.sync();

    T best = group_.largest(highest);
    Found<T>& found = area_.found[store_][pending_ + group_.row()];
    Runner runner = find_second(row, highest, best);
    T target = inside(row) ? mine_[spot(row.label)] : label_value(row);
    int ahead = count_ahead(row, target, best, runner.second);
    if (args_.prediction != nullptr) find_best(row, best, runner, found);
    group_.sync();
    // From here on the best counts as the second does: exp(0).
    if (runner.taker && runner.second < best) mine_[spot(runner.at)] = runner.second;
    if (group_.member() == 0) {
      area_.second[store_][group_.row()] = runner.second;
      found.at = row.present ? row.place(args_, grid_) : kAbsent;
      found.target = target;
      found.best = best;
      found.second = runner.second;
      found.ahead = row.ignored ? -2 : best != best ? -1 : ahead;
    }
    group_.sync();
    if (args_.confidence != nullptr || args_.nll != nullptr) {
      int strips = grid_.together ? (row.count + kStripInts - 1) / kStripInts : grid_.rows * grid_.strips;
      sum_strips(strips);
      group_.sync();
      if (!grid_.together || group_.warp() == 0) join_sums(grid_.together ? strips : grid_.strips);
      group_.sync();
    }
    pending_ += grid_.rows;
  }

  __device__ bool inside(const Row& row) const { return row.label >= 0 && row.label < row.count; }
  __device__ T label_value(const Row& row) const {
    return row.count == 0 ? T(0) : value_of<T, kType, kBase>(args_, factors_, row, row.label);
  }

  // Reads the lane's pieces: their values are kept, or counted. Returns the largest of them.
  __device__ __forceinline__ T take_pieces(const Row& row) {
    T highest = static_cast<T>(-infinity());
    int member = group_.member(), size = group_.size();
    if constexpr (kBaseKept) follow_base(row);
    // Straight: each piece lies in one strip, at a multiple of 16 bytes, and the next is whole strips further on.
    if (row.skip == 0 && size * kSize >= kStripInts) {
      take_whole<true>(row, highest);
    } else {
      take_whole<false>(row, highest);
    }
    if (row.skip == 0 && row.is_whole(row.pieces - 1)) return highest;
    // Pieces that are not whole: the first and the last, or all.
    int step = row.loose ? size : max(row.pieces - 1, 1);
    for (int number = row.loose ? member : 0; number < row.pieces; number += step) {
      if (row.is_whole(number) || (number & (size - 1)) != member) continue;
      for (int i = row.begin_of(number); i < row.end_of(number); ++i) {
        T value = value_of<T, kType, kBase>(args_, factors_, row, i);
        highest = larger(highest, value);
        if constexpr (kRanks) {
          ahead_ += ahead_of<1>(&value, i, target_, row.label);
        } else {
          mine_[spot(i)] = value;
        }
      }
    }
    return highest;
  }

  // The base's values of the row, unless they are those of the last one.
  __device__ void follow_base(const Row& row) {
    group_.sync();
    if (row.base != base_of_ && row.count > 0) {
      base_of_ = row.base;
      auto item = static_cast<int>(item_size(args_.base_dtype));
      bool aligned = (reinterpret_cast<uintptr_t>(row.base) & static_cast<unsigned>(4 * item - 1)) == 0;
      for (int i = 4 * group_.member(); i < row.count; i += 4 * group_.size()) {
        const char* p = row.base + static_cast<ptrdiff_t>(i) * item;
        T values[4] = {0, 0, 0, 0};
        if (aligned && i + 4 <= row.count) {
          aligned_four(args_.base_dtype, p, values);
        } else {
          SOUP_UNROLL
          for (int k = 0; k < 4; ++k) {
            if (i + k < row.count) values[k] = element_any<T>(args_.base_dtype, p, static_cast<size_t>(k));
          }
        }
        store4(base_ + spot(i), values);
      }
    }
    group_.sync();
  }

  // Whole pieces, kBatch of them on their way before the first is looked at.
  template <bool kStraight>
  __device__ __forceinline__ void take_whole(const Row& row, T& highest) {
    int step = group_.size() * kSize, first = row.first_of(row.start);
    const char* p = row.raw + static_cast<ptrdiff_t>(first) * (16 / kSize);
    for (int left = row.whole; left > 0; left -= kBatch) {
      uint4 words[kBatch];
      SOUP_UNROLL
      for (int k = 0; k < kBatch; ++k) {
        if (k < left) words[k] = __ldcs(reinterpret_cast<const uint4*>(p));
        p += step * (16 / kSize);
      }
      int words_before = spot(first) / kWord<T>;  // for what is straight
      T* at = reinterpret_cast<T*>(reinterpret_cast<Word<T>*>(mine_) + words_before);
      const T* base = reinterpret_cast<const T*>(reinterpret_cast<const Word<T>*>(base_) + words_before);
      SOUP_UNROLL
      for (int k = 0; k < kBatch; ++k) {
        if (k < left) take_piece<kStraight>(row, words[k], first, at, base, highest);
        first += step;
        at += step + step / 4;  // of a whole number of strips
        base += step + step / 4;
      }
    }
  }

  template <bool kStraight>
  __device__ __forceinline__ void take_piece(const Row& row, uint4 word, int first, T* at, const T* base, T& highest) {
    T values[kSize];
    widen<T, kType>(word, values);
    if constexpr (kBase) {
      T others[kSize];
      base_values<kStraight>(row, first, base, others);
      SOUP_UNROLL
      for (int i = 0; i < kSize; ++i) values[i] = combined(factors_, values[i], others[i]);
    }
    SOUP_UNROLL
    for (int i = 0; i < kSize; ++i) highest = larger(highest, values[i]);
    if constexpr (kRanks) {
      ahead_ += ahead_of<kSize>(values, first, target_, row.label);
    } else if constexpr (kStraight) {
      move<kSize>(at, values);
    } else {
      SOUP_UNROLL
      for (int i = 0; i < kSize; ++i) mine_[spot(first + i)] = values[i];
    }
  }

  template <bool kStraight>
  __device__ __forceinline__ void base_values(const Row& row, int first, const T* base, T* values) const {
    if constexpr (!kBaseKept) {
      const char* p = row.base + static_cast<ptrdiff_t>(first) * static_cast<ptrdiff_t>(item_size(args_.base_dtype));
      for (int i = 0; i < kSize; ++i) values[i] = element_any<T>(args_.base_dtype, p, static_cast<size_t>(i));
    } else if constexpr (kStraight) {
      move<kSize>(values, base);
    } else {
      SOUP_UNROLL
      for (int i = 0; i < kSize; ++i) values[i] = base_[spot(first + i)];
    }
  }

  // The largest but one, and who has the largest, where.
  struct Runner {
    T second;
    bool taker;
    int at;
  };

  // Only one of those who have met the best need look at their values again, and the others do it for that one.
  __device__ Runner find_second(const Row& row, T highest, T best) const {
    int member = group_.member(), size = group_.size();
    int winner = group_.first(highest == best);
    T high = static_cast<T>(-infinity()), low = high;
    int at = 0;
    auto meet = [&](T value, int i) {
      at = value > high ? i : at;
      low = max_of(low, min_of(high, value));
      high = max_of(high, value);
    };
    if (winner == kNobody) winner = row.pieces;  // a NaN
    for (int number = winner + member * size; number < row.pieces; number += size * size) {
      int first = row.first_of(number);
      if (row.skip == 0 && kSize % 4 == 0 && first + kSize <= row.count && !row.loose) {
        SOUP_UNROLL
        for (int q = 0; q + 4 <= kSize; q += 4) {
          T values[4];
          load4(mine_ + spot(first + q), values);
          SOUP_UNROLL
          for (int i = 0; i < 4; ++i) meet(values[i], first + q + i);
        }
      } else {
        for (int i = row.begin_of(number); i < row.end_of(number); ++i) meet(mine_[spot(i)], i);
      }
    }
    int taker = group_.first(high == best);
    T rest = member == taker ? low : high;
    if (member != winner) rest = max_of(rest, highest);
    return {group_.largest(rest), member == taker, at};
  }

  // How many of the block are ahead of the label. Where the second is less than the label's value that is quickly said:
  // the best, unless it is the label itself, or equal and after it.
  __device__ int count_ahead(const Row& row, T target, T best, T second) const {
    bool one_is_enough = args_.most_rank == 1 && best > target;
    bool easy = second < target || row.count == 0 || one_is_enough;
    T larger_ones = 0;
    if (!easy) {
      // Before the label an equal one is ahead; in its own four only those before it are, which member 0 looks at.
      T limit_before = below(target);
      int i = 4 * group_.member(), step = 4 * group_.size();
      auto four = reinterpret_cast<const Four<T>*>(mine_) + spot(i) / 4;
      SOUP_UNROLL_4
      for (; i < row.count; i += step) {
        T limit = i + 3 < row.label ? limit_before : target;
        SOUP_UNROLL
        for (int k = 0; k < 4; ++k) {
          if (four->v[k] > limit) larger_ones += T(1);
        }
        four += (step + step / 4) / 4;
        if (step < kStripInts) four = reinterpret_cast<const Four<T>*>(mine_) + spot(i + step) / 4;
      }
    }
    int ahead = static_cast<int>(larger_ones);
    if (!easy && group_.member() == 0) {
      int fours = min(max(row.label, 0), row.count) / 4 * 4;  // before the label's
      if (target == static_cast<T>(-infinity())) ahead += fours;
      for (int i = fours; i < min(row.label, row.count); ++i) ahead += mine_[spot(i)] == target ? 1 : 0;
    }
    ahead = group_.sum(ahead);
    if (easy) ahead = best > target || (best == target && row.label >= row.count) ? 1 : 0;
    return ahead;
  }

  // The lowest class of those that have the largest value.
  __device__ void find_best(const Row& row, T best, const Runner& runner, Found<T>& found) const {
    int begin = static_cast<int>(row.block * kLogitBlock);
    bool tied = runner.second == best;
    if (!tied && runner.taker) found.best_at = begin + runner.at;
    if (!group_.any(tied)) return;
    int at = kNobody;
    for (int i = group_.member(); tied && i < row.count; i += group_.size()) {
      if (mine_[spot(i)] == best) at = min(at, i);
    }
    at = group_.least(at);
    if (tied && group_.member() == 0) found.best_at = begin + at;
  }

  // Four lanes to a strip: the sums of its 16 quarters of four.
  __device__ void sum_strips(int strips) {
    int own = group_.warp() * kStripsPerWarp<T>;
    T* values = area_.values + own * kPitch;
    strips = min(grid_.together ? strips - own : strips, kStripsPerWarp<T>);
    for (int strip = group_.lane() / 4; strip < strips; strip += 8) {
      int row = grid_.together ? 0 : static_cast<int>(static_cast<unsigned>(strip) * grid_.reciprocal >> 16);
      T second = area_.second[store_][row];
      T* p = values + strip * kPitch + group_.lane() % 4 * 4;
      T e[4][4];
      SOUP_UNROLL
      for (int q = 0; q < 4; ++q) {
        load4(p + static_cast<int>(kSums) * q, e[q]);
        SOUP_UNROLL
        for (int i = 0; i < 4; ++i) e[q][i] = exp_lanes<OneLane<T>>(e[q][i] - second);
      }
      SOUP_UNROLL
      for (int i = 0; i < 4; ++i) e[0][i] = (e[0][i] + e[2][i]) + (e[1][i] + e[3][i]);
      store4(p + kStripInts, e[0]);
    }
  }

  // The strips of each row, in order, for each of 16 sums; these as a tree.
  __device__ void join_sums(int strips) {
    constexpr int kWidth = static_cast<int>(kSums);
    for (int task = group_.lane(); task - group_.lane() < grid_.rows * kWidth; task += 32) {
      int row = min(task / kWidth, grid_.rows - 1);
      const T* p = tile_ + row * strips * kPitch + kStripInts + task % kWidth;
      double total = 0.0;
      for (int strip = 0; strip < strips; ++strip) total += static_cast<double>(p[strip * kPitch]);
      for (int half = kWidth / 2; half > 0; half /= 2) total += __shfl_xor_sync(kAllLanes, total, half);
      if (task % kWidth == 0 && task < grid_.rows * kWidth) area_.found[store_][pending_ + row].sum = total;
    }
  }

  // What was found is written, a row a lane.
  __device__ void flush() {
    int number = group_.lane();
    bool writes = number < pending_ && (!grid_.together || group_.warp() == 0);
    pending_ = 0;
    if (writes) write_found(args_, grid_.blocks, area_.found[store_][number], states_);
  }

  const LogitArgs& args_;
  const LogitGrid& grid_;
  Area<T, kKeeps, kBase>& area_;
  const Group<T> group_;
  const Factors<T> factors_;
  RowState* states_;
  unsigned long long* bad_row_;
  const char* base_of_ = nullptr;  // the row whose base is in the area
  int store_;                      // whose part of the area is written to
  T target_ = 0;                   // of ranks alone: the label's value, and how many are ahead of it
  int ahead_ = 0;
  int pending_ = 0;  // rows that are found and not yet written
  T* tile_;
  T* mine_;  // the row's values, and its base's
  T* base_;
};

template <class T, uint8_t kType, bool kBase, bool kRanks>
__global__ void __launch_bounds__(32 * kWarpsPerBlock<T>, kBlocksAtOnce<T, kBase, kRanks>)
    logits_kernel(const LogitArgs args, const LogitGrid grid, RowState* states, unsigned long long* bad_row) {
  __shared__ Area<T, !kRanks, kBase> area;
  Scorer<T, kType, kBase, kRanks>(args, grid, area, states, bad_row).run();
}

}  // namespace cuda
}  // namespace soup
