#!/usr/bin/env bash
# create_venv.sh PYTHON VENV: a virtual environment with pip and the build tools, or one clear reason why not.
set -euo pipefail
python=$1
venv=$2

fail() {
  printf 'make setup: %s\n' "$*" >&2
  exit 1
}

if [ ! -x "$venv/bin/python" ]; then
  command -v "$python" >/dev/null || fail "no $python here; name a Python 3.10 to 3.13: make setup PYTHON=python3.12"
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || fail "$python does not run"
  case $version in
    3.10 | 3.11 | 3.12 | 3.13) ;;
    *) fail "$python is Python $version; name a Python 3.10 to 3.13: make setup PYTHON=python3.12" ;;
  esac
fi
command -v "${CXX:-g++}" >/dev/null || fail "no C++ compiler (${CXX:-g++}); on Debian: apt-get install g++"

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  if "$python" -c 'import ensurepip' 2>/dev/null; then
    "$python" -m venv "$venv"
  elif "$python" -m pip --version >/dev/null 2>&1; then
    # Debian splits ensurepip off; the system's pip can stand in for it.
    "$python" -m venv --without-pip "$venv"
    "$python" -m pip --python "$venv/bin/python" install -qq pip
  else
    fail "$python has neither ensurepip nor pip; on Debian: apt-get install python3-venv"
  fi
fi
headers='import sys, sysconfig, os; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'
"$venv/bin/python" -c "$headers" || fail "$python has no C headers (Python.h); on Debian: apt-get install python3-dev"
"$venv/bin/python" -m pip install -qq --disable-pip-version-check -c constraints.txt setuptools pybind11 cmake ninja
