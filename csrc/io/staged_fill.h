// SPDX-License-Identifier: MIT
// One chunk of a staged run on the host's side: its bytes read into a slot, and what the device has to do with them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "direct.h"
#include "mapped.h"
#include "plan.h"
#include "sum_table.h"
#include "staged_chunks.h"

namespace soup {

// The slot holds, in this order: results that go back, sources, the table. Offsets are from its start.
struct FilledChunk {
  struct Result {  // in the slot on the host, once what goes back is there
    Place to;
    std::size_t at, bytes;
  };

  std::size_t returned = 0;  // bytes of results
  std::size_t sent = 0;      // bytes after them, for the device
  bool sums = false;         // whether the device has anything to do
  std::size_t table = 0;     // where it is
  SumTableShape shape{};
  std::size_t first_row = 0;  // the plan's row that the table counts from
  std::vector<Result> results;
  std::uint64_t moved = 0;  // bytes read and written, as plan_bytes counts
};

// Fills slots; one for each thread.
class SlotFiller {
 public:
  // Without `direct` nothing is read past the page cache; `mapped` then is not needed either.
  SlotFiller(const Plan& plan, const SlotLayout& layout, MappedFiles* mapped, DirectFiles* direct)
      : plan_(plan), layout_(layout), mapped_(mapped), direct_(direct) {}

  // Reads all that the pieces need into the slot, whose other half on the device has that address. False if `stopped`
  // became true meanwhile. Throws as read_at does.
  bool fill(const Piece* begin, const Piece* end, char* slot, std::size_t slot_bytes, const char* device_slot,
            FilledChunk& chunk, const std::atomic<bool>& stopped);

 private:
  bool read_sources(const Piece& piece, std::uint64_t result, std::uint64_t on_device, std::size_t& at,
                    const std::atomic<bool>& stopped);
  std::size_t read(const Place& source, std::size_t bytes, std::size_t into, std::size_t region);
  void add_sum(const Piece& piece, std::uint64_t result, FilledChunk& chunk);
  void add_table(std::size_t at, std::size_t slot_bytes, FilledChunk& chunk) const;

  const Plan& plan_;
  const SlotLayout layout_;
  MappedFiles* const mapped_;
  DirectFiles* const direct_;
  // Of the chunk that is being filled.
  char* slot_ = nullptr;
  std::vector<std::uint64_t> sources_;  // addresses on the device, of one piece's sources
  Plan sums_;                           // what the device does: all its places are there
};

}  // namespace soup
