"""The script of the recorded analyses: every step's numbers and figure, and nothing done twice."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from analysis_task import Kitchen, Rule, kitchen

EXPERIMENTS = Path(__file__).resolve().parent.parent / "benchmarks" / "experiments"
STEPS = ["geometry", "plane", "pairs", "angles"]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script on a small sweep, writing below ``tmp_path``."""
    monkeypatch.setattr(sys, "path", [str(EXPERIMENTS), *sys.path])
    for name in ("run", "analyze", "measure"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    analyze = importlib.import_module("analyze")
    folder = tmp_path / "sweep"
    folder.mkdir()
    files: Kitchen = kitchen(folder, 4)
    (folder / "start").mkdir()
    Path(files.start).rename(folder / "start" / "start.safetensors")
    for path in map(Path, files.paths):
        for suffix in (".safetensors", ".json"):
            path.with_suffix(suffix).rename(folder / f"model_0{path.stem[1:]}{suffix}")
    budget = analyze.Budget(samples=50, train=20, grid=(3, 3), pairs=3)
    monkeypatch.setattr(analyze, "BUDGETS", {"images": budget})
    monkeypatch.setattr(analyze, "GROUPS", {"images": ["mixup"]})
    monkeypatch.setattr(analyze, "EXPERIMENTS", {"images": files.task})
    monkeypatch.setattr(analyze, "sweep_folder", lambda experiment, seed: folder)
    monkeypatch.setattr(analyze, "FIGURES", tmp_path / "figures")
    monkeypatch.setattr(analyze.measure, "RESULTS", tmp_path / "results")
    return analyze


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    """Runs it for two seeds; returns the forward passes."""
    args = ["analyze.py", "images", "--seeds", "0", "1", "--only", *STEPS, "--threads", "1", *options]
    monkeypatch.setattr(sys, "argv", args)
    monkeypatch.setattr(script, "_sweeps", {})
    Rule.forwards = 0
    script.main()
    return Rule.forwards


def test_every_step_is_recorded_and_drawn_once(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both seeds have the same files and one file of scores: what the first has scored the second need not.
    assert run(script, monkeypatch) > 0
    for step in STEPS:
        report = json.loads((tmp_path / "results" / f"analysis_images_{step}.json").read_text())
        assert [entry["seed"] for entry in report["runs"]] == [0, 1]
        figure = tmp_path / "figures" / f"images_{step}.svg"
        assert 0 < figure.stat().st_size < 100_000
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert run(script, monkeypatch) == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (tmp_path / "figures" / "images_plane.svg").unlink()
    assert run(script, monkeypatch, "--draw") == 0  # from the scores that are kept
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
