#!/usr/bin/env bash
# The kernel tests under each instruction set that this CPU has, forced through the environment as a user would; but the
# one that runs unasked, which has all the tests.
set -euo pipefail
python=.venv/bin/python
unasked=$("$python" -c 'from pysoup import _native; print(_native.capabilities()["isa"])')
isas=$("$python" -c 'from pysoup import _native; print(*_native.capabilities()["isas"])')
for isa in $isas; do
  printf -- '--- PYSOUP_ISA=%s\n' "$isa"
  active=$(PYSOUP_ISA=$isa "$python" -c 'from pysoup import _native; print(_native.capabilities()["isa"])')
  [ "$active" = "$isa" ] || { printf 'PYSOUP_ISA=%s, yet %s is active\n' "$isa" "$active" >&2; exit 1; }
  [ "$isa" = "$unasked" ] || PYSOUP_ISA=$isa "$python" -m pytest -q -n auto --maxprocesses 4 -p no:benchmark tests/test_ops*.py tests/test_logits*.py
done
