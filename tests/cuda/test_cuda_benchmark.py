"""The benchmark for GPUs runs to its end without one, at tiny sizes, and says what is missing where it cannot run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
from gpu import goals, sanitizer, timeline  # noqa: E402 (after the path)

SCRIPT = ROOT / "benchmarks" / "bench_cuda.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


def test_dry_run_checks_and_times_everything_asked(emulated: ModuleType, tmp_path: Path) -> None:
    output = tmp_path / "dry.json"
    done = run("--dry-run", "--output", str(output))
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(output.read_text())
    assert result["failed"] == {}
    assert {g.key for g in goals.GOALS} - set(result["measured"]) == {
        "logits f32 over compile",
        "logits bf16 over compile",
    }
    assert result["machine"]["gpu"] == "emulated"
    assert "mean nothing" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_benchmark_without_a_gpu_ends_with_one_line() -> None:
    done = run()
    assert done.returncode == 1
    assert done.stderr.startswith("bench_cuda: ")
    assert done.stderr.count("\n") == 1
    assert "--dry-run" in done.stderr


def test_tables_say_what_no_gpu_has_printed() -> None:
    rows = goals.markdown([]).splitlines()[2:]
    assert len(rows) == len(goals.GOALS)
    assert all(row.endswith("| not yet measured |") for row in rows)
    some = goals.markdown([("A GPU", {"dots": 0.912, "logits f32 over eager": 4.26})])
    assert "| >= 0.9 | 0.91 |" in some
    assert "| >= 4x | 4.3x |" in some
    assert goals.last_table({"dots": 0.5}).count("NO") == 1


def test_pages_hold_the_table_of_the_recorded_runs() -> None:
    import tables

    for page in (ROOT / "docs" / "cuda.md", ROOT / "benchmarks" / "README.md"):
        assert tables.cuda_block() in page.read_text()


@pytest.mark.parametrize(
    ("code", "output", "expected"),
    [
        (0, "12 passed in 3 s\n========= ERROR SUMMARY: 0 errors", "clean"),
        (0, "12 passed\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", "clean"),
        (86, "12 passed\n========= ERROR SUMMARY: 3 errors", "ERRORS FOUND"),
        (0, "12 passed\n========= RACECHECK SUMMARY: 1 hazard displayed", "no summary of the tool"),
        (0, "12 skipped\n========= ERROR SUMMARY: 0 errors", "no test ran"),
        (1, "1 failed, 3 passed\n========= ERROR SUMMARY: 0 errors", "exit 1"),
        (0, "12 passed", "no summary of the tool"),
    ],
)
def test_sanitizer_is_clean_only_where_tests_passed_under_it(code: int, output: str, expected: str) -> None:
    assert sanitizer.verdict(code, output) == expected


def test_timeline_tells_what_overlapped() -> None:
    chunks = [
        {"read": (0.0, 1.0), "copy": (1.0, 1.5), "kernel": (1.5, 1.6)},
        {"read": (0.5, 2.0), "copy": (2.0, 2.5), "kernel": (2.5, 2.6)},
    ]
    found = timeline.summary(chunks)
    assert found["chunks"] == 2
    assert found["seconds"] == pytest.approx(2.6)
    assert found["read"] == pytest.approx(2.0)
    assert found["read, summed over threads"] == pytest.approx(2.5)
    assert found["copy while reading"] == pytest.approx(0.5)
    assert found["kernel while reading"] == pytest.approx(0.5)
    lines = timeline.drawing(chunks, 26).splitlines()
    assert lines[1] == "read   |####################      |"
    assert lines[2] == "copy   |          #####     ##### |"
    assert lines[3] == "kernel |               #         #|"
