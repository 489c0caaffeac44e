// SPDX-License-Identifier: MIT
// faults heap|overflow|race: commits that fault, in the instrumented code where it can be had. A sanitizer that lets it
// pass is not at work, and neither is what it has found clean.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/io/run.h"
#include "models.h"

using namespace soup;

namespace {

// A kernel reads more than there is, by whole vectors.
void heap(const std::string& isa) {
  constexpr std::size_t kElements = 128;
  std::unique_ptr<float[]> source(new float[kElements / 2]()), out(new float[kElements]());
  const void* pointer = source.get();
  std::uint8_t dtype = kF32;
  double weight = 1.0;
  float weight_f32 = 1.0f;
  kernels_for(isa).weighted_sum(
      {&pointer, &dtype, &weight, &weight_f32, 1, kElements, 1.0, out.get(), kF32, kAccF32, false});
}

int overflow(int largest) { return largest + 1; }

// Two runs write the same memory.
void race() {
  Model model({{400'000, kF32, false}}, 2, 1);
  std::vector<unsigned char> out(model.bytes());
  Plan plan = model.plan_in_memory(out);
  auto run = [&] { run_plan(plan, kernels_for("auto"), {1, 0}, [](std::uint64_t) { return true; }); };
  std::thread other(run);
  run();
  other.join();
}

}  // namespace

int main(int argc, char** argv) {
  std::string fault = argc > 1 ? argv[1] : "";
  if (fault == "heap") {
    heap(argc > 2 ? argv[2] : "auto");
  } else if (fault == "overflow") {
    std::printf("%d\n", overflow(0x7FFFFFFF - 1 + argc / 2));
  } else if (fault == "race") {
    race();
  } else {
    std::fprintf(stderr, "faults heap [ISA] | overflow | race\n");
    return 2;
  }
  return 0;
}
