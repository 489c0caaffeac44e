// SPDX-License-Identifier: MIT
#include "probe.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <system_error>
#include <thread>
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include "../errors.h"

namespace soup {
namespace {

#if defined(__x86_64__)
using Word = __m128i;
Word load_word(const char* p) { return _mm_load_si128(reinterpret_cast<const __m128i*>(p)); }
Word merge(Word a, Word b) { return _mm_xor_si128(a, b); }
void store_word(char* p, Word w) { _mm_stream_si128(reinterpret_cast<__m128i*>(p), w); }
std::uint64_t fold(Word w) { return static_cast<std::uint64_t>(_mm_cvtsi128_si64(w)); }
#else
using Word = std::uint64_t;
Word load_word(const char* p) {
  Word w;
  std::memcpy(&w, p, sizeof(w));
  return w;
}
Word merge(Word a, Word b) { return a ^ b; }
void store_word(char* p, Word w) { std::memcpy(p, &w, sizeof(w)); }
std::uint64_t fold(Word w) { return w; }
#endif

constexpr std::size_t kLine = 64;
constexpr std::size_t kWords = kLine / sizeof(Word);

std::uint64_t pass(const std::vector<const void*>& sources, char* dst, std::size_t begin, std::size_t end) {
  Word total[kWords] = {};
  for (std::size_t i = begin; i < end; i += kLine) {
    Word line[kWords] = {};
    for (const void* source : sources) {
      const char* p = static_cast<const char*>(source) + i;
      for (std::size_t w = 0; w < kWords; ++w) line[w] = merge(line[w], load_word(p + w * sizeof(Word)));
    }
    for (std::size_t w = 0; w < kWords; ++w) {
      if (dst != nullptr) {
        store_word(dst + i + w * sizeof(Word), line[w]);
      } else {
        total[w] = merge(total[w], line[w]);
      }
    }
  }
  std::uint64_t folded = 0;
  for (Word w : total) folded ^= fold(w);
  return folded;
}

}  // namespace

double probe_streams(const std::vector<const void*>& sources, void* dst, std::size_t bytes, int threads) {
  auto start = std::chrono::steady_clock::now();
  std::size_t lines = bytes / kLine;
  std::size_t parts = static_cast<std::size_t>(std::max(threads, 1));
  std::vector<std::uint64_t> folded(parts);
  std::vector<std::thread> workers;
  workers.reserve(parts);
  auto work = [&](std::size_t t) {
    folded[t] = pass(sources, static_cast<char*>(dst), lines * t / parts * kLine, lines * (t + 1) / parts * kLine);
  };
  for (std::size_t t = 0; t < parts; ++t) {
    try {
      workers.emplace_back(work, t);
    } catch (const std::system_error&) {  // no more threads to be had
      work(t);
    }
  }
  for (std::thread& worker : workers) worker.join();
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  // The compiler must believe that the reads matter.
  volatile std::uint64_t sink = 0;
  for (std::uint64_t f : folded) sink = sink ^ f;
  return seconds;
}

Bandwidth measure_bandwidth(std::size_t bytes, int threads) {
  constexpr std::size_t kStreams = 8;
  constexpr int kRepeats = 5;
  bytes = std::max(bytes / kLine * kLine, kLine);
  std::unique_ptr<char, decltype(&std::free)> memory(
      static_cast<char*>(std::aligned_alloc(kLine, bytes * (kStreams + 1))), &std::free);
  if (!memory) throw Error(ErrorKind::kMemory, "no memory for the bandwidth probe");
  std::memset(memory.get(), 1, bytes * (kStreams + 1));
  std::vector<const void*> sources;
  for (std::size_t k = 0; k < kStreams; ++k) sources.push_back(memory.get() + k * bytes);
  double read = 0;
  double mix = 0;
  for (int i = 0; i < kRepeats; ++i) {
    double whole = static_cast<double>(bytes) * kStreams;
    read = std::max(read, whole / probe_streams(sources, nullptr, bytes, threads));
    double moved = static_cast<double>(bytes) * (kStreams + 1);
    mix = std::max(mix, moved / probe_streams(sources, memory.get() + kStreams * bytes, bytes, threads));
  }
  return {read, mix};
}

}  // namespace soup
