// SPDX-License-Identifier: MIT
#include "dispatch.h"

#if defined(SOUP_HAVE_AVX2)
#include <cpuid.h>
#endif

#include "../errors.h"
#include "tables.h"

namespace soup {
namespace {

#if defined(SOUP_HAVE_AVX2)
// Not every compiler's __builtin_cpu_supports knows f16c.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & (1u << 29)) != 0;
}
#endif

// Best first. __builtin_cpu_supports asks the operating system's part (saved registers) as well as the processor's.
std::vector<const KernelTable*> find_runnable_tables() {
  std::vector<const KernelTable*> tables;
#if defined(SOUP_HAVE_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      has_f16c()) {
    tables.push_back(&kAvx512Kernels);
  }
#endif
#if defined(SOUP_HAVE_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) {
    tables.push_back(&kAvx2Kernels);
  }
#endif
#if defined(SOUP_HAVE_NEON)
  tables.push_back(&kNeonKernels);  // part of the architecture's base
#endif
  tables.push_back(&kGenericKernels);
  return tables;
}

// Found once: in a virtual machine cpuid is a call of the hypervisor, which takes as long as many a kernel.
const std::vector<const KernelTable*>& runnable_tables() {
  static const std::vector<const KernelTable*> tables = find_runnable_tables();
  return tables;
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const KernelTable* table : runnable_tables()) names.emplace_back(table->name);
  return names;
}

const KernelTable& kernels_for(const std::string& isa) {
  const std::vector<const KernelTable*>& tables = runnable_tables();
  if (isa == "auto") return *tables.front();
  std::string names;
  for (const KernelTable* table : tables) {
    if (isa == table->name) return *table;
    names += (names.empty() ? "" : ", ") + std::string(table->name);
  }
  bool known = isa == "generic" || isa == "avx2" || isa == "avx512" || isa == "neon";
  throw Error(ErrorKind::kIsa, (known ? "ISA not available on this machine: found '" : "unknown ISA: found '") + isa +
                                   "', expected one of " + names);
}

}  // namespace soup
