// SPDX-License-Identifier: MIT
// Gradients and sources for inner products: each tensor in memory of its own, which ends where the tensor does, so that
// an access beyond is a sanitizer's report; and what must come out.
#pragma once

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "../../csrc/dot_plan.h"
#include "../../csrc/element.h"
#include "random_values.h"

struct DotSpec {
  std::vector<std::uint64_t> sizes;     // of the segments
  std::vector<std::uint8_t> gradients;  // dtypes, taken in turn
  std::vector<std::uint8_t> sources;    // dtypes; source k of segment s has number (k + s) % size
  std::size_t count;
  std::size_t shift;  // bytes; tensor number i starts shift * i bytes after an address divisible by 16
  bool any_bits;      // NaN, infinities and all other numbers too

  std::string name() const {
    std::string text = "count " + std::to_string(count) + " shift " + std::to_string(shift) + " types";
    for (std::uint8_t type : gradients) text += " " + std::to_string(type);
    text += " x";
    for (std::uint8_t type : sources) text += " " + std::to_string(type);
    return text + " sizes " + std::to_string(sizes.size()) + " from " + std::to_string(sizes.empty() ? 0 : sizes[0]);
  }
};

class DotModel {
 public:
  DotModel(const DotSpec& spec, std::uint64_t seed) : random_(seed) {
    plan_.count = spec.count;
    for (std::size_t s = 0; s < spec.sizes.size(); ++s) {
      std::uint8_t type = spec.gradients[s % spec.gradients.size()];
      plan_.append(spec.sizes[s], tensor(spec, spec.sizes[s], type), type);
      for (std::size_t k = 0; k < spec.count; ++k) {
        type = spec.sources[(k + s) % spec.sources.size()];
        plan_.append_source(tensor(spec, spec.sizes[s], type), type);
      }
    }
  }

  const soup::DotPlan& plan() const { return plan_; }
  std::size_t results() const { return plan_.count * plan_.segments.size(); }

  // The contract, element by element: [count, segments].
  std::vector<double> expected() const {
    std::vector<double> out;
    for (std::size_t k = 0; k < plan_.count; ++k) {
      for (std::size_t s = 0; s < plan_.segments.size(); ++s) out.push_back(dot(s, k));
    }
    return out;
  }

  // The products of one segment and source.
  template <class Each>
  void for_each(std::size_t s, std::size_t k, std::uint64_t begin, std::uint64_t end, const Each& each) const {
    const soup::DotPlan::Segment& segment = plan_.segments[s];
    std::size_t cell = s * plan_.count + k;
    const char* g = reinterpret_cast<const char*>(segment.gradient);
    const char* x = reinterpret_cast<const char*>(plan_.at[cell]);
    for (std::uint64_t i = begin; i < end; ++i) {
      each(soup::element_any<double>(segment.dtype, g, i), soup::element_any<double>(plan_.dtypes[cell], x, i));
    }
  }

 private:
  std::uint64_t tensor(const DotSpec& spec, std::uint64_t n, std::uint8_t type) {
    std::size_t shift = spec.shift * memory_.size();
    std::size_t bytes = n * soup::item_size(type);
    memory_.emplace_back(new unsigned char[shift + bytes]);  // aligned to 16
    unsigned char* begin = memory_.back().get() + shift;
    if (spec.any_bits) {
      random_.fill(begin, n, type);
    } else {
      random_.fill_finite(begin, n, type);
    }
    return reinterpret_cast<std::uint64_t>(begin);
  }

  static double tree(std::vector<double> sums) {
    while (sums.size() > 1) {
      for (std::size_t i = 0; i < sums.size() / 2; ++i) sums[i] = sums[2 * i] + sums[2 * i + 1];
      sums.resize(sums.size() / 2);
    }
    return sums[0];
  }

  double dot(std::size_t s, std::size_t k) const {
    std::vector<double> tiles(soup::kDotSums, 0.0);
    std::uint64_t n = plan_.segments[s].n;
    for (std::uint64_t t = 0; t * soup::kDotTile < n; ++t) {
      std::vector<double> sums(soup::kDotSums, 0.0);
      std::size_t i = 0;
      for_each(s, k, t * soup::kDotTile, std::min<std::uint64_t>(n, (t + 1) * soup::kDotTile), [&](double g, double x) {
        double& sum = sums[i++ % soup::kDotSums];
        sum = std::fma(g, x, sum);
      });
      tiles[t % soup::kDotSums] += tree(sums);
    }
    double sum = tree(tiles) + 0.0;
    return std::isnan(sum) ? soup::bit_cast<double>(soup::kNanF64) : sum;
  }

  Random random_;
  soup::DotPlan plan_;
  std::vector<std::unique_ptr<unsigned char[]>> memory_;
};
