#!/usr/bin/env bash
# The native code under AddressSanitizer and UndefinedBehaviorSanitizer, and under ThreadSanitizer: the C++ tests in both,
# then tests of the Python module in the first. What they find clean counts only after each of them has caught a fault
# that is committed on purpose.
set -euo pipefail
compiler=${CXX:-g++}
python=$PWD/.venv/bin/python
builds=build/sanitize
export PATH=$PWD/.venv/bin:$PATH UBSAN_OPTIONS=print_stacktrace=1
# Those that call kernels, hand them memory that Python owns, or read hostile input with native help.
python_tests=(tests/test_native_bounds.py tests/test_native_strided.py tests/test_native_nonfinite.py
  tests/test_ops_same_bits.py tests/test_logits_same_bits.py tests/test_average_files.py tests/test_unpack.py)

fail() {
  printf 'sanitize: %s\n' "$*" >&2
  exit 1
}

work=$(mktemp -d)
module=
trap '[ -z "$module" ] || kill "$module" 2>/dev/null || true; rm -rf "$work"' EXIT

printf 'int main() {}\n' >"$work/probe.cpp"
for sanitizer in address undefined thread; do
  "$compiler" -fsanitize=$sanitizer "$work/probe.cpp" -o "$work/$sanitizer" 2>"$work/log" ||
    fail "$compiler has no runtime for -fsanitize=$sanitizer: $(tail -n 1 "$work/log")"
done
# Where the kernel randomises addresses more widely than it knows of, ThreadSanitizer does not start.
unrandomised=()
if ! "$work/thread" 2>"$work/log"; then
  unrandomised=(setarch -R)
  "${unrandomised[@]}" "$work/thread" 2>>"$work/log" || fail "ThreadSanitizer does not start: $(head -n 1 "$work/log")"
fi

# build FOLDER SANITIZERS OPTION...: the C++ tests and, by default, the module.
build() {
  local folder=$1 sanitizers=$2
  shift 2
  # shellcheck disable=SC2086 # CMAKE_ARGS holds several, as for setup.py
  cmake -S. -B"$folder" -GNinja -DCMAKE_CXX_COMPILER="$compiler" -DPYSOUP_NATIVE_TESTS=ON \
    -DPYSOUP_SANITIZE="$sanitizers" -DPYSOUP_CUDA=OFF "$@" ${CMAKE_ARGS:-} >"$work/log" || { cat "$work/log" >&2; exit 1; }
  cmake --build "$folder" >"$work/log" || { cat "$work/log" >&2; exit 1; }
}

# caught REPORT COMMAND...: the command must fail, with that report.
caught() {
  local report=$1
  shift
  local log=$work/log.$BASHPID
  if "$@" >"$log" 2>&1; then fail "not noticed: $*"; fi
  grep -q "$report" "$log" || { cat "$log" >&2; fail "no '$report' from: $*"; }
  printf 'caught: %s\n' "$report"
}

printf -- '--- AddressSanitizer and UndefinedBehaviorSanitizer\n'
build $builds/address address,undefined -DPython_EXECUTABLE="$python" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)"
# The module's tests, at the same time as those in C++: in a tree of its own, where nothing can import the module without
# sanitizers.
(
  mkdir "$work/tree"
  tar -c --exclude='*.so' --exclude=__pycache__ pysoup tests pyproject.toml | tar -x -C "$work/tree"
  cmake --install $builds/address --prefix "$work/tree" >/dev/null
  runtimes="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libubsan.so)"
  for runtime in $runtimes; do
    [ -e "$runtime" ] || fail "$compiler has no shared $runtime to preload into Python"
  done
  cd "$work/tree"
  # Leaks are the interpreter's own; its small allocations have to be visible, hence malloc.
  instrumented() {
    env LD_PRELOAD="$runtimes" ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc PYTHONPATH="$work/tree" "$python" "$@"
  }
  cat >overrun.py <<'PYTHON'
"""A plan that says of a source that it has more elements than it has."""
import ctypes

from pysoup import _native
from pysoup.columns import Columns, SourceColumn

source, out = ctypes.create_string_buffer(256), ctypes.create_string_buffer(512)
columns = Columns.in_memory([128], [ctypes.addressof(out)], bytes([1]), bytes([0]), 1.0)
_native.run(columns.plan([SourceColumn.in_memory([ctypes.addressof(source)], bytes([1]), 1.0)]), threads=1)
PYTHON
  caught 'AddressSanitizer: heap-buffer-overflow' instrumented overrun.py
  instrumented -m pytest -q -p no:cacheprovider "${python_tests[@]}"
) >"$work/module" 2>&1 &
module=$!

for isa in $("$python" -c 'from pysoup import _native; print(*_native.capabilities()["isas"])'); do
  caught 'AddressSanitizer: heap-buffer-overflow' $builds/address/faults heap "$isa"
done
caught 'runtime error: signed integer overflow' $builds/address/faults overflow
$builds/address/native_tests
# The kernels for GPUs, on the host. Without what lanes exchange, or wait for, their tests must fail.
for suite in control dots logits_of_few; do
  caught 'not so' env SOUP_EMULATE_WITHOUT=shuffles $builds/address/emulated_tests $suite
done
caught 'not so' env SOUP_EMULATE_WITHOUT=barriers $builds/address/emulated_tests control
$builds/address/emulated_tests
$builds/address/staged_tests

printf -- '--- ThreadSanitizer\n'
build $builds/thread thread -DPYSOUP_MODULE=OFF
caught 'ThreadSanitizer: data race' "${unrandomised[@]}" $builds/thread/faults race
"${unrandomised[@]}" $builds/thread/native_tests
# A thread a lane: few rows will do.
caught 'ThreadSanitizer: data race' env SOUP_EMULATE_WITHOUT=barriers "${unrandomised[@]}" \
  $builds/thread/emulated_tests control
"${unrandomised[@]}" $builds/thread/emulated_tests control few
"${unrandomised[@]}" $builds/thread/staged_tests

printf -- '--- The Python module under AddressSanitizer and UndefinedBehaviorSanitizer\n'
wait "$module" || { cat "$work/module" >&2; fail 'the Python module'; }
cat "$work/module"
