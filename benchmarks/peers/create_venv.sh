#!/usr/bin/env bash
# create_venv.sh PYTHON VENV: the peers' virtual environment, or one clear reason why not.
# PYTHON is that of pysoup's own environment: the contests in memory load pysoup's native module from the working tree.
set -euo pipefail
python=$1
venv=$2
here=$(cd "$(dirname "$0")" && pwd)
requirements=(-r "$here/requirements.txt" -c "$here/../../constraints.txt")

fail() {
  printf 'make peers: %s\n' "$*" >&2
  exit 1
}

base=$("$python" -c 'import sys; print(sys._base_executable)') || fail "$python does not run; try: make setup"
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  if "$base" -c 'import ensurepip' 2>/dev/null; then
    "$base" -m venv "$venv"
  else
    "$base" -m venv --without-pip "$venv"
    "$python" -m pip --python "$venv/bin/python" install -qq pip
  fi
fi
pip=("$venv/bin/python" -m pip)
plan=$("${pip[@]}" install --disable-pip-version-check --dry-run -q --report - "${requirements[@]}" 2>/dev/null) ||
  fail "pip cannot resolve $here/requirements.txt (no package index?)"
if grep -qE '"name": "(nvidia-|cuda-)' <<<"$plan"; then
  fail "pip would take torch's CUDA build, some gigabytes; point PIP_EXTRA_INDEX_URL at an index of CPU builds"
fi
"${pip[@]}" install -qq --disable-pip-version-check "${requirements[@]}" 2>/dev/null || fail "pip install failed"
"$venv/bin/python" -c 'import mergekit.merge_methods, sd_mecha' || fail "the peers do not import"
