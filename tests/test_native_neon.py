"""The NEON kernels without an Arm machine: cross-compiled and run by an emulator."""

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


needs_arm = pytest.mark.skipif(
    COMPILER is None or EMULATOR is None, reason="needs aarch64-linux-gnu-g++ and qemu-aarch64"
)


def compile_all(sources: dict[str, list[str]], folder: Path) -> list[str]:
    """The objects of these sources, each with flags of its own."""

    def compile_one(source: str) -> str:
        target = folder / (Path(source).stem + ".o")
        command = [str(COMPILER), *FLAGS, *sources[source], "-c", str(ROOT / source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, sources))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    sources = {"csrc/cpu/kernels_neon.cpp": KERNEL_FLAGS, "csrc/cpu/kernels_generic.cpp": KERNEL_FLAGS}
    return compile_all(sources, tmp_path_factory.mktemp("kernels"))


def run(objects: list[str], folder: Path, *arguments: str) -> str:
    """What the program of these objects prints; it must not fail."""
    program = str(folder / "program")
    subprocess.run([str(COMPILER), "-static", *objects, "-o", program], check=True)
    done = subprocess.run([str(EMULATOR), program, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_arm
def test_neon_kernels_equal_the_generic_ones_on_random_bits(kernels: list[str], tmp_path: Path) -> None:
    objects = compile_all({"tests/native/compare_isas.cpp": []}, tmp_path)
    assert run([*kernels, *objects], tmp_path).endswith("cases agree\n")


@needs_arm
def test_neon_kernels_take_inner_products_to_the_same_bits(kernels: list[str], tmp_path: Path) -> None:
    """The C++ tests of inner products: against a plain loop, the generic kernels and what other machines have found."""
    sources: dict[str, list[str]] = {
        "csrc/cpu/dispatch.cpp": ["-DSOUP_HAVE_NEON", "-DSOUP_HAVE_GENERIC"],
        "csrc/cpu/dots.cpp": [],
        "tests/native/test_dots.cpp": [],
        "tests/native/main.cpp": [],
    }
    objects = compile_all(sources, tmp_path)
    printed = run([*kernels, *objects], tmp_path, "all_pairs", "minus_zero", "same_bits")
    assert printed.endswith("3 tests, 0 failed checks\n")


@needs_arm
def test_neon_kernels_score_logits_to_the_same_bits(kernels: list[str], tmp_path: Path) -> None:
    """The C++ tests of scores: against plain arithmetic, the generic kernels and what other machines have found."""
    sources: dict[str, list[str]] = {
        "csrc/cpu/dispatch.cpp": ["-DSOUP_HAVE_NEON", "-DSOUP_HAVE_GENERIC"],
        "csrc/cpu/logits.cpp": [],
        "tests/native/test_logits.cpp": [],
        "tests/native/main.cpp": [],
    }
    objects = compile_all(sources, tmp_path)
    printed = run([*kernels, *objects], tmp_path, "logits_score_as_the_contract_says", "same_bits")
    assert printed.endswith("2 tests, 0 failed checks\n")
