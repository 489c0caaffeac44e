// SPDX-License-Identifier: MIT
// The measured ceiling: plain loops over the same pages that the kernels use.
#pragma once

#include <cstddef>
#include <vector>

namespace soup {

// Seconds to read every source once and, where dst is not null, write their XOR with non-temporal stores. Nothing but
// the memory is exercised: no conversion, no rounding. Caller must: pass buffers of `bytes` bytes, 64-byte aligned.
double probe_streams(const std::vector<const void*>& sources, void* dst, std::size_t bytes, int threads);

struct Bandwidth {
  double read;  // eight streams read, bytes per second
  double mix;   // eight streams read, one written: bytes read plus bytes written per second
};

// Best of several, over freshly allocated buffers of `bytes` each.
Bandwidth measure_bandwidth(std::size_t bytes, int threads);

}  // namespace soup
