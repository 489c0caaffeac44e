#!/usr/bin/env bash
# Build a source distribution, install it without torch under every Python found here, and average files with it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

.venv/bin/python -c 'import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])' "$work" >"$work/sdist.log" 2>&1 ||
  { cat "$work/sdist.log" >&2; exit 1; }

# Constraints reach the isolated build through the environment only.
export PIP_CONSTRAINT=$PWD/constraints.txt
# The kernels for GPUs are compiled elsewhere, once and not for every Python.
export CMAKE_ARGS="${CMAKE_ARGS:-} -DPYSOUP_CUDA=OFF"
roots=$(command -v pyenv >/dev/null && printf '%s/versions' "$(pyenv root)" || true)

# check VERSION: one Python, from its own environment to an average of files.
check() {
  local version=$1 python= candidate
  # A shim of a version manager may be on PATH and yet not run.
  for candidate in "python$version" "$roots/$version".*/bin/python; do
    if "$candidate" -c 'import ensurepip' 2>/dev/null; then
      python=$candidate
      break
    fi
  done
  if [ -z "$python" ]; then
    printf -- '--- Python %s: none here, not tested\n' "$version"
    return
  fi
  printf -- '--- Python %s (%s)\n' "$version" "$python"
  "$python" -m venv "$work/$version"
  "$work/$version/bin/pip" install -qq "$work"/model_soups-*.tar.gz
  mkdir "$work/in-$version"
  (cd "$work/in-$version" && "$work/$version/bin/python" - "$work/$version/bin/pysoup") <ci/smoke.py
}

# All at once: much of an installation is waiting, or one thread.
versions=(3.10 3.11 3.12 3.13)
running=()
for version in "${versions[@]}"; do
  check "$version" >"$work/log-$version" 2>&1 &
  running+=($!)
done
failed=0
for i in "${!versions[@]}"; do
  wait "${running[$i]}" || failed=1
  cat "$work/log-${versions[$i]}"
done
exit "$failed"
