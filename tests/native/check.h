// SPDX-License-Identifier: MIT
// A test is a function that registers itself; a failed check is printed and counted, and the test goes on.
#pragma once

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "../../csrc/errors.h"

namespace check {

struct Test {
  const char* name;
  void (*body)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

struct Registered {
  Registered(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

inline void fail(const char* file, int line, const std::string& what) {
  ++failures();
  std::printf("%s:%d: %s\n", file, line, what.c_str());
}

// The error that a call throws; fails where it throws none.
template <class Call>
soup::Error thrown(const char* file, int line, Call&& call) {
  try {
    std::forward<Call>(call)();
  } catch (const soup::Error& error) {
    return error;
  }
  fail(file, line, "nothing was thrown");
  return {soup::ErrorKind::kIsa, "nothing was thrown"};
}

}  // namespace check

#define TEST(name)                                               \
  static void name();                                            \
  static const check::Registered registered_##name(#name, name); \
  static void name()
#define CHECK(condition) ((condition) ? static_cast<void>(0) : check::fail(__FILE__, __LINE__, "not so: " #condition))
#define CHECK_CASE(condition, what)   \
  ((condition) ? static_cast<void>(0) \
               : check::fail(__FILE__, __LINE__, std::string("not so: " #condition ", ") + (what)))
#define THROWN(call) check::thrown(__FILE__, __LINE__, [&] { call; })
