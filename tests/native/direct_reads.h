// SPDX-License-Identifier: MIT
// What direct reads (preadv) are made to do in the tests, and how many there were. The linker puts short_transfers.cpp
// in the place of preadv, as of pread and pwrite.
#pragma once

#include <atomic>
#include <cstddef>

namespace direct_reads {

enum class Behaviour { kAsIs, kShort, kRefused };

extern std::atomic<Behaviour> behaviour;
extern std::atomic<std::size_t> calls;
extern std::atomic<std::size_t> bytes;  // that came

}  // namespace direct_reads
