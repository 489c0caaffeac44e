// SPDX-License-Identifier: MIT
// The quick way for rows of 16-bit logits that a warp holds in its registers (the contract is in kernels.h): as they
// came from memory, or, with a base, combined. What bounds it is the number of instructions, two bytes at a time: a
// third of them would be spent on bringing values to shared memory and on finding out, for two rows, where they are.
//
// Four lanes hold a strip, each of them four neighbours of each quarter: so a lane has what the contract adds first,
// and only the sums pass through shared memory, to be added strip by strip.
#pragma once

#include "logit_area.cuh"
#include "logit_halves.cuh"
#include "logit_piece.cuh"

namespace soup {
namespace cuda {

template <uint8_t kType, int kLanes, int kSteps, bool kBase>
class RowScorer {
  using Area = RowArea<kLanes, kSteps, kBase>;
  static constexpr int kRows = Area::kRows;
  static constexpr int kStripInts = static_cast<int>(kStrip);
  static constexpr int kStep = kLanes / 4 * kStripInts;  // classes from a lane's strip to its next
  static constexpr int kWords = Area::kFourWords;
  static constexpr int kPerWord = 4 / kWords;
  // -inf, twice where words hold two values
  static constexpr uint32_t kNothing = kBase ? 0xFF800000u : kType == kBF16 ? 0xFF80FF80u : 0xFC00FC00u;
  static constexpr bool kLong = kSteps > 4;  // a row may have several blocks of classes
  static constexpr unsigned kGroupMask = kAllLanes >> (32 - kLanes);

 public:
  __device__ RowScorer(const LogitArgs& args, const LogitGrid& grid, Area& area, RowState* states,
                       unsigned long long* bad_row)
      : args_(args), grid_(grid), area_(area), factors_(args), states_(states), bad_row_(bad_row), place_(grid, 0) {
    lane_ = static_cast<int>(threadIdx.x % 32);
    group_ = lane_ / kLanes;
    member_ = lane_ % kLanes;
    first_ = member_ / 4 * kStripInts + member_ % 4 * 4;
    strips_ = grid.strips - member_ / 4;
    likelihood_ = args.confidence != nullptr || args.nll != nullptr;
    for (int i = lane_; i < kRows * Area::kPitch; i += 32) area.sums[i] = 0.0f;
    if constexpr (kBase) {  // what is combined with is a number, even where it comes to nothing
      for (Four<float>(&base)[32] : area.base) base[lane_] = Four<float>{{0, 0, 0, 0}};
    }
    __syncwarp();
  }

  __device__ void run() {
    constexpr unsigned long long warps = kRowWarps<kBase>;
    unsigned long long unit = blockIdx.x * warps + threadIdx.x / 32, units = gridDim.x * warps;
    unsigned long long tile = grid_.tiles * unit / units, end = grid_.tiles * (unit + 1) / units;
    item_ = tile * kRows + static_cast<unsigned>(group_);
    place_ = Place(grid_, item_);
    for (; tile < end; ++tile) {
      score();
      item_ += kRows;
      place_.advance(grid_, kRows);
    }
    flush();
  }

 private:
  __device__ void score() {
    if (pending_ + kRows > 32) flush();
    Found<float>& found = area_.found[pending_ + group_];
    bool present = item_ < grid_.items;
    // Of rows of one block the order is known; see LogitGrid.
    unsigned row = kLong ? place_.row(grid_) : kBase ? place_.outer : place_.inner;
    unsigned candidate = kLong ? place_.candidate(grid_) : kBase ? place_.inner : place_.outer;
    if (!present) row = candidate = 0;
    label_ = 0;
    bool ignored = take_label(row, present);
    count_ = present && !ignored ? static_cast<int>(args_.classes) : 0;
    size_t start = candidate * args_.candidate_stride + row * args_.row_stride;
    unsigned block = kLong && present ? place_.block(grid_) : 0;
    begin_ = static_cast<int>(block) * static_cast<int>(kLogitBlock);
    if constexpr (kLong) {
      start += static_cast<unsigned>(begin_);
      label_ -= begin_;
      count_ = min(max(count_ - begin_, 0), static_cast<int>(kLogitBlock));
    }
    here_ = static_cast<const char*>(args_.logits) + start * 2;
    if constexpr (kBase) follow_base(row);
    load();
    if constexpr (kBase) combine();
    target_ = count_ == 0 ? 0.0f : value_at(label_);

    float highest = largest_of_lane();
    float best = joined_lanes<kLanes>(highest, [](float a, float b) { return larger(a, b); });
    int winner = first(highest == best);
    if (member_ == winner) keep_words();
    __syncwarp();
    Runner runner = find_second(highest, best, winner);
    int ahead = count_ahead(best, runner.second);
    if (args_.prediction != nullptr) find_best(best, runner, found);
    if (likelihood_) {
      // From here on the best counts as the second does: exp(0).
      if (runner.taker && runner.second < best) replace(runner.at, runner.second);
      __syncwarp();
      if (member_ == winner) bring_words();
      sum_strips(runner.second);
      __syncwarp();
      join_sums();
    }
    if (member_ == 0) {
      unsigned long long at = (static_cast<unsigned long long>(candidate) * args_.rows + row) * grid_.blocks + block;
      found.at = present ? at : kAbsent;
      found.target = target_;
      found.best = best;
      found.second = runner.second;
      found.ahead = ignored ? -2 : best != best ? -1 : ahead;
    }
    __syncwarp();  // the next row's words and sums are not this one's
    pending_ += kRows;
  }

  // Whether the row's label is to be ignored. One that is no class counts as the nearest.
  __device__ bool take_label(unsigned row, bool present) {
    int64_t number = args_.labels[row];
    if (args_.ignoring && number == args_.ignore_label) return true;
    label_ = static_cast<int>(number);
    auto classes = static_cast<unsigned>(args_.classes);
    if (static_cast<uint64_t>(number) >= classes) {
      if (present) atomicMin(bad_row_, static_cast<unsigned long long>(row));
      label_ = number < 0 ? 0 : static_cast<int>(classes) - 1;
    }
    return false;
  }

  __device__ float value_at(int number) const {
    float x = element<float, kType>(here_ + 2 * static_cast<ptrdiff_t>(number), 0);
    if constexpr (!kBase) return x;
    return combined(factors_, x, element_any<float>(args_.base_dtype, base_, static_cast<size_t>(number)));
  }

  // Element i of the four of a quarter of the lane's k-th strip.
  __device__ __forceinline__ float value(int k, int q, int i) const {
    if constexpr (kBase) return bit_cast<float>(word_[k][q][i]);
    return value_in<kType>(word_[k][q][i / 2], i % 2);
  }

  // The lane's values of the base's row, unless they are those of the last one.
  __device__ __forceinline__ void follow_base(unsigned row) {
    size_t size = item_size(args_.base_dtype);
    const char* p = static_cast<const char*>(args_.base) + row * args_.base_row_stride * size;
    if (p == base_ || count_ == 0) return;
    base_ = p;
    for (int i = 0; i < kSteps * 4; ++i) {
      int at = first_ + i / 4 * kStep + i % 4 * 16;
      if (at < count_) aligned_four(args_.base_dtype, p + static_cast<size_t>(at) * size, area_.base[i][lane_].v);
    }
  }

  // Of classes there are a multiple of four: a quarter's four are all there, or none.
  __device__ __forceinline__ void load() {
    const char* p = here_ + 2 * first_;
    SOUP_UNROLL
    for (int k = 0; k < kSteps; ++k) {
      int left = count_ - first_ - k * kStep;
      if (left >= 52) {
        SOUP_UNROLL
        for (int q = 0; q < 4; ++q) take(k, q, p);
      } else {
        SOUP_UNROLL
        for (int q = 0; q < 4; ++q) {
          SOUP_UNROLL
          for (int w = 0; w < kWords; ++w) word_[k][q][w] = kNothing;
          if (left >= 16 * q + 4) take(k, q, p);
        }
      }
    }
  }
  __device__ __forceinline__ void take(int k, int q, const char* p) {
    uint2 two = __ldcs(reinterpret_cast<const uint2*>(p + 2 * (k * kStep + 16 * q)));
    word_[k][q][0] = two.x;
    word_[k][q][1] = two.y;
  }
  // With a base, once all loads are on their way: the two words become four values.
  __device__ __forceinline__ void combine() {
    SOUP_UNROLL
    for (int k = 0; k < kSteps; ++k) {
      if (k * kStep >= static_cast<int>(args_.classes)) break;
      int left = count_ - first_ - k * kStep;
      SOUP_UNROLL
      for (int q = 0; q < 4; ++q) {
        Four<float> base = area_.base[4 * k + q][lane_];
        uint32_t two[2] = {word_[k][q][0], word_[k][q][1]};
        SOUP_UNROLL
        for (int i = 0; i < 4; ++i) {
          word_[k][q][i] = bit_cast<uint32_t>(combined(factors_, value_in<kType>(two[i / 2], i % 2), base.v[i]));
        }
      }
      if (left >= 52) continue;
      SOUP_UNROLL
      for (int i = 0; i < 16; ++i) word_[k][i / 4][i % 4] = left >= i / 4 * 16 + 4 ? word_[k][i / 4][i % 4] : kNothing;
    }
  }

  __device__ __forceinline__ float largest_of_lane() const {
    auto join = [](uint32_t a, uint32_t b) {
      if constexpr (kBase) return bit_cast<uint32_t>(larger(bit_cast<float>(a), bit_cast<float>(b)));
      return larger_halves<kType>(a, b);
    };
    uint32_t most[kSteps];
    SOUP_UNROLL
    for (int k = 0; k < kSteps; ++k) {
      most[k] = word_[k][0][0];
      SOUP_UNROLL
      for (int i = 1; i < 4 * kWords; ++i) most[k] = join(most[k], word_[k][i / kWords][i % kWords]);
    }
    SOUP_UNROLL
    for (int k = 1; k < kSteps; ++k) most[0] = join(most[0], most[k]);
    if constexpr (kBase) return bit_cast<float>(most[0]);
    return larger(value_in<kType>(most[0], 0), value_in<kType>(most[0], 1));
  }

  // The first lane of the row for which it is true, or kNobody.
  __device__ __forceinline__ int first(bool here) const {
    unsigned found = __ballot_sync(kAllLanes, here ? 1 : 0) >> (lane_ - member_) & kGroupMask;
    return found == 0 ? kNobody : __ffs(static_cast<int>(found)) - 1;
  }

  // The lane's words to shared memory, and back.
  __device__ __forceinline__ uint32_t& word(int i) { return word_[i / (4 * kWords)][i / kWords % 4][i % kWords]; }
  __device__ __forceinline__ void keep_words() {
    auto* to = reinterpret_cast<uint4*>(area_.words[group_]);
    SOUP_UNROLL
    for (int i = 0; i < Area::kLaneWords; i += 4) {
      to[i / 4] = make_uint4(word(i), word(i + 1), word(i + 2), word(i + 3));
    }
  }
  __device__ __forceinline__ void bring_words() {
    const auto* from = reinterpret_cast<const uint4*>(area_.words[group_]);
    SOUP_UNROLL
    for (int i = 0; i < Area::kLaneWords; i += 4) {
      uint4 v = from[i / 4];
      word(i) = v.x, word(i + 1) = v.y, word(i + 2) = v.z, word(i + 3) = v.w;
    }
  }
  // One of the values there.
  __device__ __forceinline__ void replace(int at, float by) const {
    if constexpr (kBase) {
      area_.words[group_][at] = bit_cast<uint32_t>(by);
    } else {
      reinterpret_cast<uint16_t*>(area_.words[group_])[at] = code_of<kType>(by);
    }
  }

  // The largest but one; who of the lanes has met the largest among the winner's values, at which of them, which class.
  struct Runner {
    float second;
    bool taker;
    int at, number;
  };

  __device__ __forceinline__ Runner find_second(float highest, float best, int winner) const {
    constexpr int kShare = Area::kLaneWords / kLanes;  // words
    float high = static_cast<float>(-infinity()), low = high;
    int at = 0;
    if (winner != kNobody) {  // else there is a NaN
      SOUP_UNROLL
      for (int i = 0; i < kShare; ++i) {
        uint32_t word = area_.words[group_][member_ * kShare + i];
        SOUP_UNROLL
        for (int part = 0; part < kPerWord; ++part) {
          float met = kBase ? bit_cast<float>(word) : value_in<kType>(word, part);
          at = met > high ? kPerWord * i + part : at;
          low = max_of(low, min_of(high, met));
          high = max_of(high, met);
        }
      }
    }
    at += kPerWord * kShare * member_;
    int taker = first(high == best);
    float rest = member_ == taker ? low : high;
    if (member_ != winner) rest = max_of(rest, highest);
    int lane = winner % kLanes;  // of nobody, any
    int number = (lane / 4 + at / 16 * (kLanes / 4)) * kStripInts + at % 16 / 4 * 16 + lane % 4 * 4 + at % 4;
    float second = joined_lanes<kLanes>(rest, [](float a, float b) { return larger(a, b); });
    return {second, member_ == taker, at, number};
  }

  // How many classes are ahead of the label: see Scorer::count_ahead.
  __device__ int count_ahead(float best, float second) const {
    bool one_is_enough = args_.most_rank == 1 && best > target_;
    bool easy = second < target_ || count_ == 0 || one_is_enough;
    int easily = best > target_ || (best == target_ && label_ >= count_) ? 1 : 0;
    if (__any_sync(kAllLanes, easy ? 0 : 1) == 0) return easily;
    float limit_before = below(target_);
    float larger_ones = 0;
    SOUP_UNROLL
    for (int i = 0; i < kSteps * 16; ++i) {
      int four = first_ + i / 16 * kStep + i / 4 % 4 * 16;
      float limit = four + 3 < label_ ? limit_before : target_;
      if (value(i / 16, i / 4 % 4, i % 4) > limit) larger_ones += 1;
    }
    int ahead = static_cast<int>(larger_ones);
    if (!easy && member_ == 0) {
      int four = min(max(label_, 0), count_) / 4 * 4;  // the label's own
      if (target_ == static_cast<float>(-infinity())) ahead += four;
      SOUP_UNROLL
      for (int i = 0; i < 3; ++i) {
        if (four + i < min(label_, count_) && value_at(four + i) == target_) ++ahead;
      }
    }
    ahead = joined_lanes<kLanes>(ahead, [](int a, int b) { return a + b; });
    return easy ? easily : ahead;
  }

  // The lowest class of those that have the largest value.
  __device__ void find_best(float best, const Runner& runner, Found<float>& found) const {
    bool tied = runner.second == best;
    if (!tied && runner.taker) found.best_at = begin_ + runner.number;
    if (__any_sync(kAllLanes, tied ? 1 : 0) == 0) return;
    int at = kNobody;
    SOUP_UNROLL
    for (int i = kSteps * 16 - 1; i >= 0; --i) {
      bool here = value(i / 16, i / 4 % 4, i % 4) == best;
      at = here ? first_ + i / 16 * kStep + i / 4 % 4 * 16 + i % 4 : at;
    }
    at = joined_lanes<kLanes>(at, [](int a, int b) { return min(a, b); });
    if (tied && member_ == 0) found.best_at = begin_ + at;
  }

  __device__ __forceinline__ void sum_strips(float second) const {
    constexpr int kWidth = static_cast<int>(kSums);
    float* to = area_.sums + group_ * Area::kPitch + member_ / 4 * kWidth + member_ % 4 * 4;
    SOUP_UNROLL
    for (int k = 0; k < kSteps; ++k) {
      if (!kLong && k * kStep >= static_cast<int>(args_.classes)) break;
      float e[4][4];
      SOUP_UNROLL
      for (int i = 0; i < 16; ++i) e[i / 4][i % 4] = exp_lanes<OneLane<float>>(value(k, i / 4, i % 4) - second);
      SOUP_UNROLL
      for (int i = 0; i < 4; ++i) e[0][i] = (e[0][i] + e[2][i]) + (e[1][i] + e[3][i]);
      // Where the next row may have more strips than this one, all are written.
      bool there = kLong ? member_ / 4 * kStripInts + k * kStep < count_ : k * (kLanes / 4) < strips_;
      const float nothing[4] = {0, 0, 0, 0};
      if (there) {
        store4(to + k * (kLanes / 4) * kWidth, e[0]);
      } else if (kLong) {
        store4(to + k * (kLanes / 4) * kWidth, nothing);
      }
    }
  }

  // The strips of each row, in order, for each of 16 sums; these as a tree. Strips that are not there count 0.
  __device__ void join_sums() const {
    constexpr int kWidth = static_cast<int>(kSums);
    SOUP_UNROLL
    for (int first = 0; first < kRows * kWidth; first += 32) {
      int row = min((first + lane_) / kWidth, kRows - 1);
      const float* p = area_.sums + row * Area::kPitch + lane_ % kWidth;
      double total = 0.0;
      SOUP_UNROLL
      for (int strip = 0; strip < Area::kStrips; ++strip) total += static_cast<double>(p[strip * kWidth]);
      SOUP_UNROLL
      for (int half = kWidth / 2; half > 0; half /= 2) total += __shfl_xor_sync(kAllLanes, total, half);
      if (lane_ % kWidth == 0 && first + lane_ < kRows * kWidth) area_.found[pending_ + row].sum = total;
    }
  }

  // What was found is written, a row a lane.
  __device__ void flush() {
    if (lane_ < pending_) write_found(args_, kLong ? grid_.blocks : 1, area_.found[lane_], states_);
    pending_ = 0;
    __syncwarp();
  }

  const LogitArgs& args_;
  const LogitGrid& grid_;
  Area& area_;
  const Factors<float> factors_;
  RowState* states_;
  unsigned long long* bad_row_;
  int lane_, group_, member_;
  int first_;   // the lane's first class
  int strips_;  // of the row, from the lane's first on
  bool likelihood_;
  int pending_ = 0;  // rows that are found and not yet written
  unsigned long long item_;
  Place place_;                 // of it
  const char* base_ = nullptr;  // the row whose base is in the area
  // Of the row, or block, that is looked at, with the label's number in it.
  const char* here_;
  int begin_, count_, label_;
  float target_;
  uint32_t word_[kSteps][4][kWords];  // four neighbours of each quarter of its strips
};

template <uint8_t kType, int kLanes, int kSteps, bool kBase>
__global__ void __launch_bounds__(32 * kRowWarps<kBase>, kRowBlocksAtOnce<kSteps, kBase>)
    logits_rows_kernel(const LogitArgs args, const LogitGrid grid, RowState* states, unsigned long long* bad_row) {
  __shared__ RowArea<kLanes, kSteps, kBase> areas[kRowWarps<kBase>];
  RowScorer<kType, kLanes, kSteps, kBase>(args, grid, areas[threadIdx.x / 32], states, bad_row).run();
}

}  // namespace cuda
}  // namespace soup
