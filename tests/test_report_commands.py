"""The commands in a report: put together from traces, they are understood and make the same again."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from linear_task import write_checkpoints, write_task
from report_runs import write_recipe

from pysoup.cli import main
from pysoup.report.collect import collect
from pysoup.report.commands import command_of, evaluate_command

RECIPES = {
    "uniform": ["uniform"],
    "greedy": ["greedy"],
    "strict": ["greedy", "--accept", ">", "--min-delta", "0.001", "--passes", "2", "--replacement"],
    "random": ["greedy", "--order", "random", "--seed", "1", "--no-early-rejection", "--max-ingredients", "1"],
    "pruned": ["pruned", "--passes", "1"],
    "greedier": ["greedier", "--prefilter", "2"],
    "all": ["ensemble", "--all"],
    "ensemble": ["ensemble", "--select", "best", "--replacement", "--max-ingredients", "3"],
    "learned": ["learned", "--lr", "0.5", "--epochs", "1", "--seed", "3", "--no-temperature", "--keep", "lowest"],
}
TIMES = ("timing", "seconds", "mix_seconds", "score_seconds")


def facts(trace: object) -> object:
    """A trace without its times, and without rounding noise of training on other threads."""
    if isinstance(trace, dict):
        return {key: facts(value) for key, value in trace.items() if key not in TIMES}
    return [facts(item) for item in trace] if isinstance(trace, list) else trace


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_command_makes_it_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task, checkpoints = write_task(tmp_path), write_checkpoints(tmp_path)
    assert main([*RECIPES[name], "--task", task, *checkpoints, "-o", "first"]) == 0
    (made,) = collect(["first"]).made
    program, *words = shlex.split(command_of(made))
    assert program == "pysoup"
    assert words[-2:] == ["-o", "first"]
    assert main([*words[:-1], "second"]) == 0
    first, second = (json.loads(Path(run, "trace.json").read_text()) for run in ("first", "second"))
    assert facts(first) == facts(second)


def test_the_metric_is_named_where_it_is_not_what_a_task_has_by_default(tmp_path: Path) -> None:
    words = {}
    for metric in ("accuracy", "nll", "top5", "kappa"):
        write_recipe(tmp_path / metric, "greedy", ["a"], metric=metric)
        (made,) = collect([tmp_path / metric]).made
        words[metric] = shlex.split(command_of(made))
    assert [metric for metric in words if "--metric" in words[metric]] == ["nll", "top5"]
    assert words["nll"][words["nll"].index("--metric") + 1] == "nll"


def test_other_recipes_are_the_weighted_average_that_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task, checkpoints = write_task(tmp_path), write_checkpoints(tmp_path)
    assert main(["interpolate", "--task", task, *checkpoints[1:3], "--alphas", "0.25", "-o", "run"]) == 0
    (made,) = collect(["run"]).made
    words = shlex.split(command_of(made))
    assert words[:2] == ["pysoup", "average"]
    assert main(words[1:]) == 0
    from safetensors.torch import load_file

    one, other = load_file("run/soup.safetensors"), load_file("soup.safetensors")
    assert all(one[key].allclose(other[key], rtol=1e-6) for key in one)


def test_the_command_of_the_scores_finds_them_all_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    task, checkpoints = write_task(tmp_path), write_checkpoints(tmp_path)
    assert main(["greedy", "--task", task, *checkpoints, "-o", "run/greedy"]) == 0
    assert main(["evaluate", "--task", task, *checkpoints, "run/greedy", "-o", "run"]) == 0
    words = shlex.split(evaluate_command(collect(["run"])))
    capsys.readouterr()
    assert main([*words[1:-1], "run"]) == 0
    assert "5 models: 0 scored, 5 known" in capsys.readouterr().out
