// SPDX-License-Identifier: MIT
#include "dot_stream.h"

#include <algorithm>
#include <memory>

#include "../dot_join.h"
#include "../dot_plan.h"
#include "../errors.h"
#include "../float_environment.h"
#include "source_files.h"

namespace soup {
namespace {

// As in run.cpp: bytes read per chunk where they are in memory.
constexpr std::uint64_t kMemoryChunk = 1u << 20;
// Sources that a kernel is given at a time.
constexpr std::size_t kAtOnce = 64;

std::uint64_t tile_elements(std::uint64_t n) { return std::min<std::uint64_t>(n, kDotTile); }

std::size_t align_up(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }

// Tiles whose sums fit into that many bytes.
std::uint64_t window_of(const DotStream& stream, std::size_t waiting) {
  std::size_t tile = std::max<std::size_t>(1, stream.width()) * sizeof(double);
  return std::max<std::uint64_t>(1, std::min<std::uint64_t>(waiting / tile, stream.tiles));
}

// Whether the longest pieces that are read at once have room between the ends of blocks, too.
std::size_t buffer_for(const DotStream& stream, PieceLayout layout) {
  std::size_t most = 0;
  for (std::size_t s = 0; s < stream.segments.size(); ++s) {
    std::size_t all = 0;
    for (std::size_t k = 0; k < stream.count; ++k) {
      const Place& source = stream.sources[s * stream.count + k];
      if (source.fd < 0) continue;
      std::size_t one = tile_elements(stream.segments[s].n) * item_size(source.dtype) + layout.slack;
      all = stream.pairs ? all + one : std::max(all, one);
    }
    most = std::max(most, all);
  }
  return most;
}

// Tiles [begin, end) of one segment.
struct Chunk {
  std::size_t segment;
  std::uint64_t begin, end;
};

class Stream {
 public:
  Stream(const DotStream& stream, const KernelTable& kernels, const RunOptions& options, std::size_t waiting)
      : stream_(stream),
        dot_tile_(kernels.dot_tile),
        buffer_bytes_(options.buffer_bytes),
        wants_direct_(options.direct && options.buffer_bytes >= buffer_for(stream, kPastCache)),
        layout_(wants_direct_ ? kPastCache : kThroughCache),
        fds_(source_files(stream)),
        width_(stream.width()),
        window_(window_of(stream, waiting)),
        threads_(stream.bytes < Crew::kInlineBytes ? 1 : options.threads) {
    if (buffer_bytes_ < buffer_for(stream, kThroughCache)) {
      throw Error(ErrorKind::kInvalid, "the buffer is too small for a tile of the sources");
    }
  }

  bool execute(const Tick& tick, double* out) {
    bool helpers_only = !fds_.empty() && stream_.bytes >= Crew::kInlineBytes;
    files_ = std::make_unique<SourceFiles>(helpers_only ? fds_ : std::vector<int>(), wants_direct_);
    sums_.resize(window_ * width_);
    rows_.assign(rows_reached(most_tiles()) * width_, 0.0);
    Crew crew(threads_, helpers_only);
    std::size_t segment = 0;
    for (std::uint64_t first = 0; first < stream_.tiles; first += window_) {
      std::uint64_t end = std::min(first + window_, stream_.tiles);
      first_tile_ = first;
      list_chunks(segment, first, end);
      if (!crew.run(chunks_.size(), [&] { return std::make_unique<Member>(*this, crew); }, tick)) return false;
      segment = fold(segment, first, end, out);
    }
    return true;
  }

 private:
  class Member : public CrewMember {
   public:
    Member(Stream& stream, Crew& crew)
        : stream_(stream), crew_(crew), pointers_(stream.stream_.count), dtypes_(stream.stream_.count) {
      if (!stream.fds_.empty()) buffer_ = std::make_unique<PieceBuffer>(stream.buffer_bytes_, stream.layout_);
    }
    void process(std::uint64_t chunk) override {
      char* buffer = buffer_ ? buffer_->begin() : nullptr;
      crew_.count(stream_.process(stream_.chunks_[chunk], buffer, pointers_, dtypes_));
    }

   private:
    Stream& stream_;
    Crew& crew_;
    std::unique_ptr<PieceBuffer> buffer_;
    std::vector<const char*> pointers_;
    std::vector<std::uint8_t> dtypes_;
  };

  std::uint64_t most_tiles() const {
    std::uint64_t most = 0;
    for (const DotStream::Segment& segment : stream_.segments) most = std::max(most, DotPlan::tiles_of(segment.n));
    return most;
  }

  const Place& source(std::size_t segment, std::size_t k) const { return stream_.sources[segment * stream_.count + k]; }

  // What a source's piece of that many elements takes of a buffer.
  std::size_t room_for(const Place& source, std::uint64_t elements) const {
    return source.fd < 0 ? 0 : align_up(elements * item_size(source.dtype), layout_.alignment) + layout_.slack;
  }

  // Tiles of a segment that are read at once: as many as the buffer has room for, of all sources.
  std::uint64_t chunk_tiles(std::size_t s) const {
    std::size_t read = 0, slack = 0, all = 0;
    for (std::size_t k = 0; k < stream_.count; ++k) {
      const Place& place = source(s, k);
      std::size_t tile = kDotTile * item_size(place.dtype);
      all += tile;
      if (place.fd < 0) continue;
      read += tile;
      slack += layout_.slack;
    }
    std::uint64_t tiles = kMemoryChunk / std::max<std::size_t>(all, 1);
    if (read > 0) tiles = buffer_bytes_ > slack ? (buffer_bytes_ - slack) / read : 0;
    return std::max<std::uint64_t>(1, tiles);
  }

  // Segments from `s` on have tiles [first, end) of all.
  void list_chunks(std::size_t s, std::uint64_t first, std::uint64_t end) {
    chunks_.clear();
    for (; s < stream_.segments.size() && stream_.segments[s].first_tile < end; ++s) {
      const DotStream::Segment& segment = stream_.segments[s];
      std::uint64_t begin = std::max(first, segment.first_tile) - segment.first_tile;
      std::uint64_t until = std::min(end - segment.first_tile, DotPlan::tiles_of(segment.n));
      std::uint64_t step = chunk_tiles(s);
      for (; begin < until; begin += step) chunks_.push_back({s, begin, std::min(begin + step, until)});
    }
  }

  // Returns the bytes that were read.
  std::uint64_t process(const Chunk& chunk, char* buffer, std::vector<const char*>& pointers,
                        std::vector<std::uint8_t>& dtypes) {
    const DotStream::Segment& segment = stream_.segments[chunk.segment];
    std::uint64_t begin = chunk.begin * kDotTile;
    std::uint64_t n = std::min(chunk.end * kDotTile, segment.n) - begin;
    std::uint64_t moved = stream_.pairs ? 0 : n * item_size(segment.gradient.dtype);
    for (std::size_t first = 0, next = 0; first < stream_.count; first = next) {
      char* room = buffer;
      std::size_t free = buffer_bytes_;
      for (; next < stream_.count; ++next) {
        const Place& place = source(chunk.segment, next);
        std::size_t needed = room_for(place, n);
        // What a minimal buffer is for: one source at a time, or a tile of all of them.
        if (needed > free && next > first && !stream_.pairs) break;
        free -= std::min(needed, free);
        std::size_t size = item_size(place.dtype);
        pointers[next] = files_->fetch(place, begin * size, n * size, room);
        dtypes[next] = place.dtype;
        moved += n * size;
      }
      for (std::uint64_t tile = chunk.begin; tile < chunk.end; ++tile) {
        dot(segment, tile, (tile - chunk.begin) * kDotTile, first, next, pointers, dtypes);
      }
      for (std::size_t k = first; k < next; ++k) {
        const Place& place = source(chunk.segment, k);
        files_->check(place, begin * item_size(place.dtype));
      }
    }
    return moved;
  }

  // One tile, which is `offset` elements into the pieces of sources [first, end).
  void dot(const DotStream::Segment& segment, std::uint64_t tile, std::uint64_t offset, std::size_t first,
           std::size_t end, const std::vector<const char*>& pointers, const std::vector<std::uint8_t>& dtypes) {
    const void* sources[kAtOnce];
    DotTileArgs args;
    args.sources = sources;
    args.n = static_cast<std::size_t>(std::min<std::uint64_t>(kDotTile, segment.n - tile * kDotTile));
    args.stride = 1;
    double* sums = sums_.data() + (segment.first_tile + tile - first_tile_) * width_;
    auto at = [&](std::size_t k) { return pointers[k] + offset * item_size(dtypes[k]); };
    auto with = [&](std::size_t from, double* results) {
      for (std::size_t k = from; k < end; k += args.count) {
        args.count = std::min(kAtOnce, end - k);
        for (std::size_t i = 0; i < args.count; ++i) sources[i] = at(k + i);
        args.dtypes = dtypes.data() + k;
        args.sums = results + (k - from);
        dot_tile_(args);
      }
    };
    if (!stream_.pairs) {
      std::size_t size = item_size(segment.gradient.dtype);
      args.gradient = reinterpret_cast<const char*>(segment.gradient.at) + tile * kDotTile * size;
      args.gradient_dtype = segment.gradient.dtype;
      with(first, sums + first);
      return;
    }
    for (std::size_t k = 0; k < stream_.count; sums += stream_.count - k, ++k) {
      args.gradient = at(k);
      args.gradient_dtype = dtypes[k];
      with(k, sums);
    }
  }

  // Adds the sums of tiles [first, end), of segments from `s` on, in order; those of segments that end there are
  // joined. Returns the segment that tile `end` is of.
  std::size_t fold(std::size_t s, std::uint64_t first, std::uint64_t end, double* out) {
    FloatEnvironment environment;
    while (s < stream_.segments.size() && stream_.segments[s].first_tile < end) {
      const DotStream::Segment& segment = stream_.segments[s];
      std::uint64_t tiles = DotPlan::tiles_of(segment.n);
      std::uint64_t until = std::min(end, segment.first_tile + tiles);
      for (std::uint64_t tile = std::max(first, segment.first_tile); tile < until; ++tile) {
        add_tile(rows_.data(), width_, tile - segment.first_tile, sums_.data() + (tile - first) * width_, 1);
      }
      if (until < segment.first_tile + tiles) return s;
      join_tiles(rows_.data(), width_, tiles);
      for (std::size_t i = 0; i < width_ && tiles > 0; ++i) out[i * stream_.segments.size() + s] = rows_[i];
      std::fill_n(rows_.begin(), rows_reached(tiles) * width_, 0.0);
      ++s;
    }
    return s;
  }

  const DotStream& stream_;
  void (*const dot_tile_)(const DotTileArgs&);
  const std::size_t buffer_bytes_;
  const bool wants_direct_;
  const PieceLayout layout_;
  const std::vector<int> fds_;
  const std::size_t width_;
  const std::uint64_t window_;  // tiles
  const int threads_;
  std::unique_ptr<SourceFiles> files_;
  std::vector<Chunk> chunks_;  // of the window
  std::uint64_t first_tile_ = 0;
  std::vector<double> sums_;  // [tiles of the window, width]
  std::vector<double> rows_;  // [kDotSums, width]: see dot_join.h
};

}  // namespace

void DotStream::append(std::uint64_t n, Place gradient) {
  segments.push_back({n, tiles, gradient});
  tiles += DotPlan::tiles_of(n);
  if (!pairs) bytes += n * item_size(gradient.dtype);
}

void DotStream::append_source(Place source) {
  sources.push_back(source);
  bytes += segments.back().n * item_size(source.dtype);
}

std::vector<int> source_files(const DotStream& stream) {
  std::vector<int> fds;
  for (const Place& place : stream.sources) {
    if (place.fd >= 0) fds.push_back(place.fd);
  }
  std::sort(fds.begin(), fds.end());
  fds.erase(std::unique(fds.begin(), fds.end()), fds.end());
  return fds;
}

std::size_t minimum_buffer(const DotStream& stream) { return buffer_for(stream, kThroughCache); }

std::size_t memory_for_sums(const DotStream& stream) {
  std::uint64_t most = 0;
  for (const DotStream::Segment& segment : stream.segments) most = std::max(most, DotPlan::tiles_of(segment.n));
  return (window_of(stream, kWaitingSums) + rows_reached(most)) * stream.width() * sizeof(double);
}

bool stream_dots(const DotStream& stream, const KernelTable& kernels, const RunOptions& options, const Tick& tick,
                 double* out, std::size_t waiting) {
  std::fill_n(out, stream.width() * stream.segments.size(), 0.0);
  if (stream.tiles == 0 || stream.count == 0) return true;
  return Stream(stream, kernels, options, waiting).execute(tick, out);
}

}  // namespace soup
