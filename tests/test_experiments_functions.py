"""The recorded analyses of functions: every step on a small sweep, its figure, and nothing computed twice."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from analysis_task import Kitchen, Rule, kitchen

EXPERIMENTS = Path(__file__).resolve().parent.parent / "benchmarks" / "experiments"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script on a small sweep, writing below ``tmp_path``."""
    monkeypatch.setattr(sys, "path", [str(EXPERIMENTS), *sys.path])
    for name in ("run", "analyze", "function_steps", "measure"):
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
    budget = analyze.function_steps.FunctionBudget(
        samples=50, tests=("test", "wide"), orders=2, line_samples=40, models=2, alphas=3
    )
    monkeypatch.setattr(analyze.function_steps, "BUDGETS", {"images": budget})
    monkeypatch.setattr(analyze, "EXPERIMENTS", {"images": files.task})
    monkeypatch.setattr(analyze, "sweep_folder", lambda experiment, seed: folder)
    monkeypatch.setattr(analyze, "FIGURES", tmp_path / "figures")
    monkeypatch.setattr(analyze.measure, "RESULTS", tmp_path / "results")
    return analyze


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    """Runs the steps of functions for one seed; returns the forward passes."""
    steps = list(script.function_steps.STEPS)
    args = ["analyze.py", "images", "--seeds", "0", "--only", *steps, "--threads", "1", *options]
    monkeypatch.setattr(sys, "argv", args)
    monkeypatch.setattr(script, "_sweeps", {})
    Rule.forwards = 0
    script.main()
    return Rule.forwards


def test_every_step_is_recorded_and_drawn_once(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(script, monkeypatch) > 0
    runs = {
        step: json.loads((tmp_path / "results" / f"analysis_images_{step}.json").read_text())["runs"][0]
        for step in script.function_steps.STEPS
    }
    assert list(runs["count"]["curves"]["uniform"]) == ["heldout", "test", "wide"]
    assert len(runs["calibration"]["curves"]["ensemble"]["ece"]["wide"]) == 4
    assert runs["approximation"]["models"] == ["start", "model_00", "model_03"]  # the lowest and a highest rate
    assert len(runs["approximation"]["points"]) == 3 * 3
    assert runs["compare"]["models"] == ["best", "second", "uniform soup", "ensemble"]
    figures = {"images_calibration.svg", "images_reliability.svg", "images_count.svg", "images_approximation.svg"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == figures
    assert run(script, monkeypatch) == 0
