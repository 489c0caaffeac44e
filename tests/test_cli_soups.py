"""``pysoup uniform`` and ``pysoup greedy`` from a task file to a directory of results."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from linear_task import write_checkpoints, write_task
from safetensors.torch import load_file

from pysoup.cli import main


@pytest.fixture
def task(tmp_path: Path) -> str:
    return write_task(tmp_path)


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[str]:
    return write_checkpoints(tmp_path)


def test_greedy_keeps_what_helps_and_prints_each_step(
    task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["greedy", "--task", task, *checkpoints, "-o", str(run)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    steps = re.findall(r"(\w+)\.safetensors .* (kept|refused)", out)
    assert [name for name, _ in steps][3] == "useless"
    assert steps[0][1] == "kept"
    assert steps[3][1] == "refused"
    results = json.loads((run / "results.json").read_text())
    assert set(results["tests"]) == {"shifted"}
    assert f"held-out accuracy {results['heldout']:.5g}" in out
    trace = json.loads((run / "trace.json").read_text())["trace"]
    kept = [load_file(step["ingredient"])["weight"] for step in trace if step["accepted"]]
    torch.testing.assert_close(load_file(run / "soup.safetensors")["weight"], sum(kept) / len(kept))
    for name in ("soup.safetensors", "trace.json", "results.json"):
        assert f"wrote {run / name}" in out


def test_greedy_options_reach_the_recipe_and_its_cost_is_printed(
    task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--accept", ">", "--min-delta", "0.001", "--order", "random", "--seed", "2", "--max-ingredients", "2"]
    run = tmp_path / "run"
    command = ["greedy", "--task", task, *checkpoints, "-o", str(run)]
    assert main([*command, *options, "--passes", "3", "--replacement", "--no-early-rejection"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    trace = json.loads((run / "trace.json").read_text())
    assert trace["options"] == {
        "accept": ">",
        "min_delta": 0.001,
        "order": "random",
        "seed": 2,
        "max_ingredients": 2,
        "passes": 3,
        "replacement": True,
        "early_rejection": False,
    }
    used = f"{trace['passes']['used']:.4g} passes over the held-out set"
    assert re.search(rf"^{used}; mix \d+\.\d\d s, score \d+\.\d\d s, read ahead \d+\.\d\d s$", out, re.MULTILINE)
    assert sum(step["accepted"] for step in trace["trace"]) <= 2


@pytest.mark.parametrize("order", [[], ["--order", "score"], ["--order", "given"]])
def test_a_seed_for_an_order_that_draws_nothing_is_refused(
    order: list[str], task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["greedy", "--task", task, *checkpoints, "-o", str(tmp_path / "run"), *order]
    assert main([*command, "--seed", "3"]) == 2
    assert f"--order {(order or ['', 'score'])[1]} draws nothing: --seed cannot go with it." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_was_refused_early_is_printed_with_what_was_still_possible(
    task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["greedy", "--task", task, *checkpoints, "-o", str(run), "--metric", "nll"]) == 0
    out = capsys.readouterr().out
    step = json.loads((run / "trace.json").read_text())["trace"][-1]
    assert step["candidate_score"] is None
    assert re.search(rf"useless\.safetensors .* >= {step['bound']:.5g} .* {step['samples'] / 3:.0f}%  refused", out)


def test_uniform_averages_all(
    task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["uniform", "--task", task, *checkpoints, "-o", str(run), "--metric", "nll"]) == 0
    assert "uniform soup of 4: held-out nll " in capsys.readouterr().out
    expected = sum(load_file(path)["weight"] for path in checkpoints) / 4
    torch.testing.assert_close(load_file(run / "soup.safetensors")["weight"], expected)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (["--task", "task.py"], "task.py"),
        (["--task", "nowhere.py:Task"], "nowhere.py"),
        (["--task", "TASK", "--metric", "charm"], "charm"),
    ],
)
def test_wrong_task_or_metric_is_one_line(
    wrong: list[str], word: str, task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [task if option == "TASK" else option for option in wrong]
    assert main(["greedy", *checkpoints, "-o", str(tmp_path / "run"), *options]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pysoup: error: ")
    assert err.count("\n") == 1
    assert word in err
