"""The study's tables: numbers that another computation confirms, made from the saved report alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "bench_demo.py"
MACHINE = {"cpu": "A processor", "cores": 2, "memory_gib": 8, "date": "2024-05-06", "commit": "abc1234"}


def row(test: float, uci: float) -> dict[str, Any]:
    return {"name": "any", "test": test, "mean_shift": uci, "shifts": {"uci": uci}}


def run(seed: int, best: float, greedy: float) -> dict[str, Any]:
    return {
        "seed": seed,
        "initialization": row(0.5, 0.25),
        "best": row(best, 0.5),
        "second": row(0.5, 0.5),
        "uniform": row(0.75, 0.5),
        "greedy": row(greedy, 0.625),
        "mean_model": {"test": 0.6, "worst": 0.5, "best": 0.7},
        "greedy_ingredients": seed,
        "seconds": 12.4,
    }


REPORT = {
    "machine": MACHINE,
    "torch": "2.0",
    "isa": "AVX2",
    "threads": 1,
    "ingredients": 4,
    "runs": [run(3, 0.60, 0.70), run(4, 0.62, 0.76)],
}


@pytest.fixture
def lines(tmp_path: Path) -> list[str]:
    """What the script prints, in a process that has neither torch nor pysoup."""
    saved = tmp_path / "report.json"
    saved.write_text(json.dumps(REPORT))
    code = (
        "import runpy, sys; sys.modules['torch'] = sys.modules['pysoup'] = None; sys.path.insert(0, sys.argv[1]); "
        "script = sys.argv[2]; sys.argv = sys.argv[2:]; runpy.run_path(script, run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(SCRIPT.parent), str(SCRIPT), "--table-only", "--out", str(saved)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_study_table_has_mean_and_sample_deviation(lines: list[str]) -> None:
    assert "| Method | mnist test | mean of shifts | uci |" in lines
    # Two values a and b: mean (a + b) / 2, deviation |a - b| / sqrt(2).
    assert "| Best individual model | 61.00 ± 1.41 | 50.00 ± 0.00 | 50.00 ± 0.00 |" in lines
    assert "| Greedy soup | 73.00 ± 4.24 | 62.50 ± 0.00 | 62.50 ± 0.00 |" in lines


def test_study_differences_are_paired(lines: list[str]) -> None:
    # +10 and +14 points, seed by seed.
    assert "| greedy - best | +12.00 ± 2.83 | +12.50 ± 0.00 | +12.50 ± 0.00 |" in lines
    assert "| greedy - start | +23.00 ± 4.24 | +37.50 ± 0.00 | +37.50 ± 0.00 |" in lines


def test_study_names_machine_and_every_seed(lines: list[str]) -> None:
    assert lines[0] == "A processor, 2 cores, 8 GiB, 2024-05-06, commit abc1234; torch 2.0, AVX2, 1 thread."
    per_seed = [line for line in lines if line.startswith(("| 3 |", "| 4 |"))]
    assert per_seed == [
        "| 3 | 60.00 / 50.00 | 50.00 / 50.00 | 75.00 / 50.00 | 70.00 / 62.50 | 3 | 50.00, 60.00, 70.00 | 12 |",
        "| 4 | 62.00 / 50.00 | 50.00 / 50.00 | 75.00 / 50.00 | 76.00 / 62.50 | 4 | 50.00, 60.00, 70.00 | 12 |",
    ]
