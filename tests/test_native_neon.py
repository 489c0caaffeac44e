"""The NEON kernels without an Arm machine: cross-compiled, run by an emulator, compared with the generic ones."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMPILER, EMULATOR = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
FLAGS = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-ffp-contract=off"]
KERNEL_FLAGS = ["-fno-exceptions", "-fno-rtti", "-fno-math-errno"]  # as in CMakeLists.txt


@pytest.mark.skipif(COMPILER is None or EMULATOR is None, reason="needs aarch64-linux-gnu-g++ and qemu-aarch64")
def test_neon_kernels_equal_the_generic_ones_on_random_bits(tmp_path: Path) -> None:
    sources = {
        "csrc/cpu/kernels_neon.cpp": KERNEL_FLAGS,
        "csrc/cpu/kernels_generic.cpp": KERNEL_FLAGS,
        "tests/native/compare_isas.cpp": [],
    }

    def build(source: str) -> str:
        target = tmp_path / (Path(source).stem + ".o")
        command = [str(COMPILER), *FLAGS, *sources[source], "-c", str(ROOT / source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(build, sources))
    program = str(tmp_path / "compare")
    subprocess.run([str(COMPILER), "-static", *objects, "-o", program], check=True)
    done = subprocess.run([str(EMULATOR), program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("cases agree\n")
