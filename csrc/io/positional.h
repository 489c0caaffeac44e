// SPDX-License-Identifier: MIT
// Whole reads and writes at a position. "No error" from the system may still mean fewer bytes than asked for, so both
// loop until all bytes have moved, and throw Error with the descriptor and the offset where they did not.
#pragma once

#include <cstddef>
#include <cstdint>

namespace soup {

void read_at(int fd, void* buffer, std::size_t bytes, std::uint64_t offset);
void write_at(int fd, const void* buffer, std::size_t bytes, std::uint64_t offset);

}  // namespace soup
