// SPDX-License-Identifier: MIT
// A block of classes of one row of logits: where it is, the label, and the values of its pieces.
#pragma once

#include "../element.h"
#include "logit_group.cuh"

namespace soup {
namespace cuda {

constexpr uint8_t kAnyType = 254;  // known at run time only: for f64 arithmetic, which is rare

// Elements in a piece.
template <class T, uint8_t kType>
constexpr int kPieceSize = kType == kAnyType ? 2
                           : kType == kF32   ? 4
                                             : 8;
template <uint8_t kType>
__device__ __forceinline__ size_t size_of_element(const LogitArgs& args) {
  return kType == kAnyType ? item_size(args.dtype) : kType == kF32 ? 4 : 2;
}

template <class T, uint8_t kType>
__device__ __forceinline__ T element_at(const LogitArgs& args, const char* p, size_t i) {
  if constexpr (kType == kAnyType) {
    return element_any<T>(args.dtype, p, i);
  } else {
    return element<T, kType>(p, i);
  }
}

// What a base's values and a candidate's are combined with.
template <class T>
struct Factors {
  T weight, scale;
  __device__ explicit Factors(const LogitArgs& args)
      : weight(static_cast<T>(args.weight)), scale(static_cast<T>(args.scale)) {}
};
template <class T>
__device__ __forceinline__ T combined(const Factors<T>& factors, T x, T base) {
  return factors.scale * fused_multiply_add(factors.weight, x, base);
}

// Elements of 16 bytes.
template <class T, uint8_t kType>
__device__ __forceinline__ void widen(uint4 word, T* values) {
  if constexpr (kType == kAnyType) {
    values[0] = bit_cast<double>(static_cast<uint64_t>(word.y) << 32 | word.x);
    values[1] = bit_cast<double>(static_cast<uint64_t>(word.w) << 32 | word.z);
  } else {
    unsigned parts[4] = {word.x, word.y, word.z, word.w};
    SOUP_UNROLL
    for (int i = 0; i < 4; ++i) {
      if constexpr (kType == kF32) {
        values[i] = bit_cast<float>(parts[i]);
      } else if constexpr (kType == kBF16) {
        values[2 * i] = bit_cast<float>(parts[i] << 16);
        values[2 * i + 1] = bit_cast<float>(parts[i] & 0xFFFF0000u);
      } else {
        values[2 * i] = f16_to_f32(static_cast<uint16_t>(parts[i]));
        values[2 * i + 1] = f16_to_f32(static_cast<uint16_t>(parts[i] >> 16));
      }
    }
  }
}

// One row's block of classes. Elements are numbered from the block's first. Pieces are the words of 16 bytes that its
// memory covers, so the first and the last may be a part of one; where elements do not lie at multiples of their size,
// no piece is whole.
template <class T, uint8_t kType>
struct Piece {
  static constexpr int kSize = kPieceSize<T, kType>;
  bool present, ignored;
  bool loose;  // no piece is whole
  unsigned candidate, row, block;
  int count;         // elements
  int skip;          // of the first piece's elements that come before the block
  int pieces;        // in all
  int start, whole;  // the lane's first whole piece, and how many it has, each `size of the group` after the last
  int label;         // the label's number: negative in an earlier block, at least count in a later one
  const char* raw;   // the block's first element
  const char* base;  // the same of the base

  __device__ int first_of(int piece) const { return piece * kSize - skip; }
  __device__ int begin_of(int piece) const { return max(first_of(piece), 0); }
  __device__ int end_of(int piece) const { return min(first_of(piece) + kSize, count); }
  __device__ bool is_whole(int piece) const {
    return !loose && first_of(piece) >= 0 && first_of(piece) + kSize <= count;
  }
  // Where its state goes; in a row of one block, where its scores go.
  __device__ unsigned long long place(const LogitArgs& args, const LogitGrid& grid) const {
    return (static_cast<unsigned long long>(candidate) * args.rows + row) * grid.blocks + block;
  }
};

// bad_row: the least row whose label is no class.
template <class T, uint8_t kType>
__device__ Piece<T, kType> piece_of(const LogitArgs& args, const LogitGrid& grid, const Group<T>& group,
                                    const Place& place, bool present, unsigned long long* bad_row) {
  Piece<T, kType> piece;
  piece.present = present;
  piece.candidate = present ? place.candidate(grid) : 0;
  piece.row = present ? place.row(grid) : 0;
  piece.block = present ? place.block(grid) : 0;
  int64_t number = args.labels[piece.row];
  int classes = static_cast<int>(args.classes);
  int label = static_cast<int>(number);
  piece.ignored = args.ignoring && number == args.ignore_label;
  if (!piece.ignored && static_cast<uint64_t>(number) >= static_cast<unsigned>(classes)) {
    if (present) atomicMin(bad_row, static_cast<unsigned long long>(piece.row));
    label = number < 0 ? 0 : classes - 1;
  }
  int begin = static_cast<int>(piece.block) * static_cast<int>(kLogitBlock);
  piece.label = label - begin;
  piece.count = present && !piece.ignored ? min(classes - begin, static_cast<int>(kLogitBlock)) : 0;
  const size_t size = size_of_element<kType>(args);
  piece.raw =
      static_cast<const char*>(args.logits) +
      (piece.candidate * args.candidate_stride + piece.row * args.row_stride + static_cast<unsigned>(begin)) * size;
  piece.base =
      static_cast<const char*>(args.base) + (piece.row * args.base_row_stride + begin) * item_size(args.base_dtype);
  auto misfit = static_cast<unsigned>(reinterpret_cast<uintptr_t>(piece.raw) & 15u);
  constexpr unsigned whole = 16 / Piece<T, kType>::kSize;  // bytes of an element of whole pieces
  piece.loose = misfit % whole != 0 || size != whole;
  piece.skip = piece.loose ? 0 : static_cast<int>(misfit / whole);
  piece.pieces = piece.count == 0 ? 0 : (piece.skip + piece.count + piece.kSize - 1) / piece.kSize;
  piece.start = group.member() + (piece.skip > 0 && group.member() == 0 ? group.size() : 0);
  int end = piece.loose ? 0 : (piece.skip + piece.count) / piece.kSize;  // of the whole ones
  piece.whole = end > piece.start ? (end - piece.start + group.size() - 1) >> group.size_log2() : 0;
  return piece;
}

// The value of an element, wherever it is.
template <class T, uint8_t kType, bool kBase>
__device__ T value_of(const LogitArgs& args, const Factors<T>& factors, const Piece<T, kType>& piece, ptrdiff_t i) {
  T x = element_at<T, kType>(args, piece.raw + i * static_cast<ptrdiff_t>(size_of_element<kType>(args)), 0);
  if constexpr (!kBase) return x;
  const char* base = piece.base + i * static_cast<ptrdiff_t>(item_size(args.base_dtype));
  return combined(factors, x, element_any<T>(args.base_dtype, base, 0));
}

// Four neighbours of a type of 32 bits or fewer, at a multiple of their size.
template <class T>
__device__ __forceinline__ void aligned_four(uint8_t dtype, const char* p, T* values) {
  if (dtype == kF32) return widen<T, kF32>(*reinterpret_cast<const uint4*>(p), values);
  uint2 word = *reinterpret_cast<const uint2*>(p);
  unsigned parts[2] = {word.x, word.y};
  SOUP_UNROLL
  for (int i = 0; i < 4; ++i) {
    auto bits = static_cast<uint16_t>(parts[i / 2] >> (i % 2 * 16));
    values[i] = dtype == kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
  }
}

}  // namespace cuda
}  // namespace soup
