// SPDX-License-Identifier: MIT
#include "models.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "../../csrc/io/positional.h"
#include "reference.h"

using namespace soup;

namespace {

// Of a long row some of every chunk, so that all threads that work on it find it.
constexpr std::uint64_t kSpoiled = 997;

std::uint8_t accumulator_of(std::uint8_t dtype) { return item_size(dtype) <= 2 ? kAccF32 : kAccF64; }

bool raw(const RowSpec& row) { return row.dtype == kRaw; }

// An infinity, or for e4m3, which has none, a NaN.
void spoil(unsigned char* element, std::uint8_t dtype) {
  static const unsigned char top[][2] = {{0xF0, 0x7F}, {0x80, 0x7F}, {0x00, 0x7C}, {0x80, 0x7F}, {0x7F, 0}, {0x7C, 0}};
  std::size_t size = item_size(dtype);
  std::memset(element, 0, size);
  std::memcpy(element + (size > 1 ? size - 2 : 0), top[dtype], size > 1 ? 2 : 1);
}

}  // namespace

File::File(const std::vector<unsigned char>& bytes) : fd_(::memfd_create("test", 0)) {
  if (fd_ < 0) std::abort();
  write_at(fd_, bytes.data(), bytes.size(), 0);
}

File::~File() { ::close(fd_); }

std::vector<unsigned char> File::read(std::size_t bytes) const {
  std::vector<unsigned char> found(bytes);
  read_at(fd_, found.data(), bytes, 0);
  return found;
}

void File::truncate(std::size_t bytes) {
  if (::ftruncate(fd_, static_cast<off_t>(bytes)) != 0) std::abort();
}

Place in_memory(const void* address) { return {reinterpret_cast<std::uint64_t>(address), -1, 0}; }
Place in_file(const File& file) { return {0, file.fd(), 0}; }

Model::Model(std::vector<RowSpec> rows, std::size_t count, std::uint64_t seed) : rows_(std::move(rows)) {
  Random random(seed);
  std::size_t total = 0;
  for (const RowSpec& row : rows_) total += row.n * item_size(row.dtype);
  sources_.assign(count, std::vector<unsigned char>(total));
  std::size_t at = 0;
  for (std::size_t r = 0; r < rows_.size(); ++r) {
    const RowSpec& row = rows_[r];
    std::size_t bytes = row.n * item_size(row.dtype);
    for (auto& source : sources_) random.fill_finite(source.data() + at, row.n, row.dtype);
    if (row.nonfinite && row.n > 0) {
      spoil(sources_[r % count].data() + at + bytes - item_size(row.dtype), row.dtype);
      for (std::uint64_t i = 0; i < row.n; i += kSpoiled) {
        spoil(sources_[0].data() + at + i * item_size(row.dtype), row.dtype);
      }
      nonfinite_.push_back(r);
    }
    if (raw(row)) {
      expected_.insert(expected_.end(), sources_[0].begin() + static_cast<std::ptrdiff_t>(at),
                       sources_[0].begin() + static_cast<std::ptrdiff_t>(at + bytes));
    } else {
      std::vector<const void*> pointers;
      for (const auto& source : sources_) pointers.push_back(source.data() + at);
      std::vector<std::uint8_t> dtypes(count, row.dtype);
      std::vector<double> weights(count, 1.0);
      std::vector<float> weights_f32(count, 1.0f);
      Result result = reference_sum({pointers.data(), dtypes.data(), weights.data(), weights_f32.data(), count, row.n,
                                     static_cast<double>(count), nullptr, row.dtype, accumulator_of(row.dtype), false});
      expected_.insert(expected_.end(), result.bytes.begin(), result.bytes.end());
    }
    at += bytes;
  }
}

Plan Model::plan(const std::vector<Place>& sources, Place dst) const {
  Plan plan;
  std::uint64_t at = 0;
  for (const RowSpec& row : rows_) {
    std::size_t used = raw(row) ? 1 : sources.size();
    for (std::size_t k = 0; k < used; ++k) {
      plan.sources.push_back({sources[k].at + at, sources[k].fd, row.dtype});
      plan.weights.push_back(1.0);
      plan.weights_f32.push_back(1.0f);
    }
    double divisor = raw(row) ? 1.0 : static_cast<double>(used);
    append_segment(plan, {row.n, 0, used, {dst.at + at, dst.fd, row.dtype}, divisor, accumulator_of(row.dtype)});
    at += row.n * item_size(row.dtype);
  }
  return plan;
}

Plan Model::plan_in_memory(std::vector<unsigned char>& out) const {
  std::vector<Place> places;
  for (const auto& source : sources_) places.push_back(in_memory(source.data()));
  return plan(places, in_memory(out.data()));
}
