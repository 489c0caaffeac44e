"""What is marked ``alone`` runs when no other process runs a test."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

TEST = """
import time
from pathlib import Path

import pytest

def spend(name, seconds):
    began = time.monotonic()
    time.sleep(seconds)
    with open(Path(__file__).with_name("times"), "a") as file:
        file.write(f"{name} {began} {time.monotonic()}\\n")

@pytest.mark.parametrize("number", range(12))
def test_together(number):
    spend("together", 0.02)

@pytest.mark.alone
@pytest.mark.parametrize("number", range(3))
def test_alone(number):
    spend("alone", 0.05)
"""


def test_who_is_to_be_alone_is_and_the_others_are_not(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    for name in ("a", "b", "c"):
        (tmp_path / f"test_{name}.py").write_text(TEST)
    (tmp_path / "conftest.py").write_text((Path(__file__).with_name("conftest.py")).read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = \n  alone\n  cuda\n")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "3", "--dist", "loadfile", "-p", "no:benchmark"]
    done = subprocess.run([*command, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in (tmp_path / "times").read_text().splitlines()]
    assert len(lines) == 45
    met = [
        {one[0], other[0]}
        for one, other in combinations(lines, 2)
        if float(one[1]) < float(other[2]) and float(other[1]) < float(one[2])
    ]
    assert {"together"} in met
    assert all(pair == {"together"} for pair in met)
