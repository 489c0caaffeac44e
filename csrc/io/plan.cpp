// SPDX-License-Identifier: MIT
#include "plan.h"

#include <algorithm>

namespace soup {
namespace {

bool continues(const Place& before, std::uint64_t n, const Place& after) {
  return before.fd == after.fd && before.dtype == after.dtype && before.at + n * item_size(before.dtype) == after.at;
}

bool continues(const Plan& plan, const Segment& before, const Segment& after) {
  bool same = before.count == after.count && before.divisor == after.divisor &&
              before.accumulator == after.accumulator && continues(before.dst, before.n, after.dst);
  for (std::size_t k = 0; same && k < before.count; ++k) {
    std::size_t a = before.first_source + k;
    std::size_t b = after.first_source + k;
    same = plan.weights[a] == plan.weights[b] && continues(plan.sources[a], before.n, plan.sources[b]);
  }
  return same;
}

}  // namespace

RowRange rows_of(const Plan& plan, std::size_t segment) {
  bool last = segment + 1 == plan.segments.size();
  return {plan.segments[segment].first_row, last ? plan.row_ends.size() : plan.segments[segment + 1].first_row};
}

std::uint64_t row_start(const Plan& plan, RowRange rows, std::size_t row) {
  return row == rows.begin ? 0 : plan.row_ends[row - 1];
}

std::size_t row_at(const Plan& plan, RowRange rows, std::uint64_t element) {
  auto begin = plan.row_ends.begin();
  auto after = std::upper_bound(begin + static_cast<std::ptrdiff_t>(rows.begin),
                                begin + static_cast<std::ptrdiff_t>(rows.end), element);
  return static_cast<std::size_t>(after - begin);
}

void append_segment(Plan& plan, Segment segment) {
  segment.first_source = plan.sources.size() - segment.count;
  if (!plan.segments.empty() && continues(plan, plan.segments.back(), segment)) {
    plan.segments.back().n += segment.n;
    plan.row_ends.push_back(plan.segments.back().n);
    plan.sources.resize(segment.first_source);
    plan.weights.resize(segment.first_source);
    plan.weights_f32.resize(segment.first_source);
    return;
  }
  segment.first_row = plan.row_ends.size();
  plan.row_ends.push_back(segment.n);
  plan.segments.push_back(segment);
}

std::pair<std::int64_t, std::int64_t> find_overlap(const Plan& plan) {
  struct Range {
    std::uint64_t begin, end;
    std::size_t segment, item;
  };
  auto range_of = [](const Place& place, std::uint64_t n, std::size_t segment) {
    std::size_t item = item_size(place.dtype);
    return Range{place.at, place.at + n * item, segment, item};
  };
  std::vector<Range> written;
  for (std::size_t s = 0; s < plan.segments.size(); ++s) {
    const Segment& segment = plan.segments[s];
    if (segment.dst.fd < 0 && segment.n > 0) written.push_back(range_of(segment.dst, segment.n, s));
  }
  std::sort(written.begin(), written.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  // The rows that hold the first byte that two ranges share. Two merged segments overlap exactly where all their rows
  // do, so where they overlap otherwise these rows do, too.
  auto rows = [&plan](const Range& a, const Range& b) {
    std::uint64_t shared = std::max(a.begin, b.begin);
    auto row = [&](const Range& range) {
      std::uint64_t element = (shared - range.begin) / range.item;
      return static_cast<std::int64_t>(row_at(plan, rows_of(plan, range.segment), element));
    };
    return std::pair<std::int64_t, std::int64_t>(row(a), row(b));
  };
  for (std::size_t i = 1; i < written.size(); ++i) {
    if (written[i].begin < written[i - 1].end) return rows(written[i - 1], written[i]);
  }
  for (std::size_t s = 0; s < plan.segments.size(); ++s) {
    const Segment& segment = plan.segments[s];
    for (std::size_t k = 0; k < segment.count && segment.n > 0; ++k) {
      const Place& source = plan.sources[segment.first_source + k];
      if (source.fd >= 0) continue;
      Range read = range_of(source, segment.n, s);
      // Written ranges are disjoint and sorted by now, hence by their ends as well.
      auto hit = std::upper_bound(written.begin(), written.end(), read.begin,
                                  [](std::uint64_t begin, const Range& range) { return begin < range.end; });
      if (hit == written.end() || hit->begin >= read.end) continue;
      bool exact = hit->segment == s && hit->begin == read.begin && hit->end == read.end;
      if (!exact) return rows(*hit, read);
    }
  }
  return {-1, -1};
}

SegmentCost cost_of(const Plan& plan, const Segment& segment) {
  SegmentCost cost;
  auto add = [&cost](const Place& place) {
    std::size_t size = item_size(place.dtype);
    cost.moved += size;
    if (place.fd >= 0) {
      cost.buffered += size;
      ++cost.buffers;
    }
  };
  for (std::size_t k = 0; k < segment.count; ++k) add(plan.sources[segment.first_source + k]);
  add(segment.dst);
  return cost;
}

std::vector<int> source_files(const Plan& plan) {
  std::vector<int> fds;
  for (const Place& place : plan.sources) {
    if (place.fd >= 0 && (fds.empty() || fds.back() != place.fd)) fds.push_back(place.fd);
  }
  std::sort(fds.begin(), fds.end());
  fds.erase(std::unique(fds.begin(), fds.end()), fds.end());
  return fds;
}

std::uint64_t plan_bytes(const Plan& plan) {
  std::uint64_t bytes = 0;
  for (const Segment& segment : plan.segments) bytes += cost_of(plan, segment).moved * segment.n;
  return bytes;
}

std::size_t plan_minimum_buffer(const Plan& plan) {
  std::size_t bytes = 0;
  for (const Segment& segment : plan.segments) {
    SegmentCost cost = cost_of(plan, segment);
    if (cost.buffers > 0) bytes = std::max(bytes, cost.buffered * kGranule + cost.buffers * 64);
  }
  return bytes;
}

}  // namespace soup
