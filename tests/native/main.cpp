// SPDX-License-Identifier: MIT
// main [NAME ...]: runs the tests whose names contain one of these, or all; exits 1 if one failed.
#include <chrono>
#include <cstdio>
#include <string>

#include "check.h"

int main(int argc, char** argv) {
  int run = 0;
  for (const check::Test& test : check::tests()) {
    bool chosen = argc < 2;
    for (int i = 1; i < argc; ++i) chosen |= std::string(test.name).find(argv[i]) != std::string::npos;
    if (!chosen) continue;
    auto start = std::chrono::steady_clock::now();
    test.body();
    std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    std::printf("%6.2f s  %s\n", seconds.count(), test.name);
    std::fflush(stdout);
    ++run;
  }
  std::printf("%d tests, %d failed checks\n", run, check::failures());
  return run == 0 || check::failures() != 0 ? 1 : 0;
}
