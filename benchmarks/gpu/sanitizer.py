"""The tests of the kernels on a GPU under compute-sanitizer: accesses out of bounds, and races in shared memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

TOOLS = ("memcheck", "racecheck")
# Names of our kernels are in namespace soup: torch's own are left alone, which is most of the time saved.
OPTIONS = ("--kernel-name", "kns=soup", "--error-exitcode", "86")


def run(root: Path, deadline: float) -> int:
    """Runs each tool over ``pytest -m cuda``; prints what it found. 0 if all is clean."""
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if sanitizer is None:
        print("bench_cuda: no compute-sanitizer here (it is part of the CUDA toolkit)", file=sys.stderr)
        return 1
    results: list[tuple[str, str]] = []
    for tool in TOOLS:
        begun = time.monotonic()
        code, tail = _run(sanitizer, tool, root, deadline)
        print(f"--- {tool}: {time.monotonic() - begun:.0f} s\n{tail}", flush=True)
        results.append((tool, code))
    for tool, code in results:
        print(f"{tool:10} {code}")
    return int(any(code != "clean" for _, code in results))


def _run(sanitizer: str, tool: str, root: Path, deadline: float) -> tuple[str, str]:
    """("clean" or what was wrong, the end of the output)."""
    tests = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", "."]
    # Each tensor in an allocation of its own: within torch's pool an access past the end is in bounds.
    env = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    left = max(1.0, deadline - time.monotonic())
    try:
        done = subprocess.run(
            [sanitizer, "--tool", tool, *OPTIONS, *tests],
            # Python puts this folder first in its path: from the root it would find the sources, which are not built.
            cwd=root / "tests" / "cuda",
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=left,
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        return f"not finished within {left:.0f} s", output[-2000:]
    output = done.stdout + done.stderr
    return verdict(done.returncode, output), output[-4000:]


def verdict(code: int, output: str) -> str:
    """What a run came to: tests have to have run, and to have passed, for "clean" to say anything."""
    passed = re.search(r"\b(\d+) passed", output)
    if code == 86:
        return "ERRORS FOUND"
    if code:
        return f"exit {code}"
    if not re.search(r"(ERROR SUMMARY|RACECHECK SUMMARY).*: 0 \w+", output):
        return "no summary of the tool"
    return "clean" if passed and int(passed[1]) else "no test ran"
