// SPDX-License-Identifier: MIT
// Small models for plans: rows of several types, their sources and results in memory or in files, and what must come
// out, row by row, by the reference.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../../csrc/io/plan.h"
#include "random_values.h"

// A file without a name, gone when the object is.
class File {
 public:
  explicit File(const std::vector<unsigned char>& bytes = {});
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  int fd() const { return fd_; }
  std::vector<unsigned char> read(std::size_t bytes) const;
  void truncate(std::size_t bytes);

 private:
  int fd_;
};

struct RowSpec {
  std::uint64_t n;
  std::uint8_t dtype;  // of sources and result
  bool nonfinite = false;
};

class Model {
 public:
  // `count` sources, rows side by side in each. Rows are finite but for those marked, which have infinities here and
  // there, one of them in their last element.
  Model(std::vector<RowSpec> rows, std::size_t count, std::uint64_t seed);

  std::size_t bytes() const { return expected_.size(); }  // of one source, and of the result
  std::size_t count() const { return sources_.size(); }
  std::vector<unsigned char>& source(std::size_t k) { return sources_[k]; }
  const std::vector<unsigned char>& expected() const { return expected_; }
  const std::vector<std::size_t>& nonfinite() const { return nonfinite_; }

  // The plan, with sources and result where the places say: addresses, or offset 0 of files.
  soup::Plan plan(const std::vector<soup::Place>& sources, soup::Place dst) const;
  // All in memory; the result in `out`, which has to have bytes() bytes.
  soup::Plan plan_in_memory(std::vector<unsigned char>& out) const;

 private:
  std::vector<RowSpec> rows_;
  std::vector<std::vector<unsigned char>> sources_;
  std::vector<unsigned char> expected_;
  std::vector<std::size_t> nonfinite_;
};

soup::Place in_memory(const void* address);
soup::Place in_file(const File& file);
