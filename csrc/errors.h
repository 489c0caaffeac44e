// SPDX-License-Identifier: MIT
// The one exception type of the native core. bindings.cpp translates it to Python in one place; nothing below ever
// prints, exits or aborts.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace soup {

enum class ErrorKind { kInvalid, kIsa, kRead, kShortRead, kWrite, kMemory, kDevice };

struct Error : std::runtime_error {
  Error(ErrorKind error_kind, const std::string& what) : std::runtime_error(what), kind(error_kind) {}
  // For kRead, kShortRead and kWrite: which descriptor, where in the file, and what the system said.
  Error(ErrorKind error_kind, const std::string& what, int file, std::uint64_t at, int error_number)
      : std::runtime_error(what), kind(error_kind), fd(file), offset(at), code(error_number) {}

  ErrorKind kind;
  int fd = -1;
  std::uint64_t offset = 0;
  int code = 0;
};

}  // namespace soup
