"""``pysoup uniform`` and ``pysoup greedy`` from a task file to a directory of results."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pysoup.cli import main

TASK = '''
import torch

class Task:
    """Labels of a linear rule; held-out and test data differ."""

    def model(self):
        return torch.nn.Linear(8, 3, bias=False)

    def heldout(self):
        return self._data(1)

    def tests(self):
        return {"shifted": self._data(2)}

    def _data(self, seed):
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(300, 8, generator=g)
        rule = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
        return [(x, (x @ rule.T).argmax(1))]
'''


@pytest.fixture
def task(tmp_path: Path) -> str:
    """The task; beside it two noisy copies of the true weights and one that is all noise."""
    (tmp_path / "task.py").write_text(TASK)
    rule = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    noise = torch.Generator().manual_seed(3)
    for name, scale in (("good", 0.4), ("better", 0.3), ("useless", 30.0)):
        weight = rule + scale * torch.randn(3, 8, generator=noise)
        save_file({"weight": weight}, tmp_path / f"{name}.safetensors")
    return f"{tmp_path / 'task.py'}:Task"


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[str]:
    return [str(tmp_path / f"{name}.safetensors") for name in ("useless", "good", "better")]


def test_greedy_keeps_what_helps_and_prints_each_step(
    task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["greedy", "--task", task, *checkpoints, "-o", str(run)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    steps = re.findall(r"(\w+)\.safetensors .* (kept|refused)", out)
    assert [name for name, _ in steps][2] == "useless"
    assert steps[0][1] == "kept"
    assert steps[2][1] == "refused"
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
    assert "uniform soup of 3: held-out nll " in capsys.readouterr().out
    expected = sum(load_file(path)["weight"] for path in checkpoints) / 3
    torch.testing.assert_close(load_file(run / "soup.safetensors")["weight"], expected)


def test_results_of_an_earlier_run_are_kept_unless_forced(
    task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["uniform", "--task", task, *checkpoints, "-o", str(tmp_path / "run")]
    assert main(command) == 0
    before = (tmp_path / "run" / "soup.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert (tmp_path / "run" / "soup.safetensors").stat().st_mtime_ns == before
    assert main([*command, "--force"]) == 0


@pytest.mark.parametrize("command", ["uniform", "greedy"])
def test_patterns_and_recorded_scores_choose_the_candidates(
    command: str, task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "val.json").write_text(json.dumps({"good": {"nll": 2}, "better": {"nll": 1}, "useless": {"nll": 9}}))
    chosen = ["--top", "2", "--by", "nll", "--lowest"]
    run = tmp_path / "run"
    assert main([command, "--task", task, f"{tmp_path}/*.safetensors", "-o", str(run), *chosen]) == 0
    soup = json.loads((run / "trace.json").read_text())
    names = soup["ingredients"] if command == "uniform" else [step["ingredient"] for step in soup["trace"]]
    assert sorted(Path(name).stem for name in names) == ["better", "good"]
    out = capsys.readouterr().out
    assert f"note: {tmp_path}/*.safetensors: 3 checkpoints\n" in out
    assert f"note: 2 of 3 checkpoints by nll in {tmp_path}/val.json, lowest first\n" in out


@pytest.mark.parametrize("command", ["uniform", "greedy"])
def test_entry_is_taken_of_nested_files(
    command: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ema = {"weight": torch.randn(3, 8)}
    for number in range(2):
        torch.save({"model": {"weight": torch.zeros(3, 8)}, "ema": ema, "epoch": number}, tmp_path / f"{number}.pt")
    run = tmp_path / "run"
    assert main([command, "--task", task, f"{tmp_path}/*.pt", "-o", str(run), "--entry", "ema"]) == 0
    assert torch.equal(load_file(run / "soup.safetensors")["weight"], ema["weight"])


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


def test_demo_refuses_a_directory_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("precious")
    assert main(["demo", "-o", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("command", ["uniform", "greedy"])
def test_notes_are_printed_once_each(
    command: str, task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": {"module.weight": torch.ones(3, 8)}, "epoch": 1}, tmp_path / "wrapped.pt")
    poisoned = load_file(checkpoints[0])
    poisoned["weight"][0, 0] = float("nan")
    save_file(poisoned, checkpoints[0])
    run = tmp_path / "run"
    inputs = [f"{tmp_path}/*.pt", *checkpoints]
    assert main([command, "--task", task, *inputs, "-o", str(run)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    notes = [line for line in out.splitlines() if line.startswith("note: ")]
    assert len(notes) == len(set(notes))
    assert f"note: {tmp_path}/*.pt: 1 checkpoint" in notes
    assert f"note: weights taken from entry 'model' of {tmp_path}/wrapped.pt" in notes
    assert sum("matched to those of the model" in note for note in notes) == 1
    assert "NaN or infinity in tensor 'weight'" in out
    said = json.loads((run / "trace.json").read_text())["notes"]
    assert {f"note: {note}" for note in said} <= set(notes)


@pytest.mark.parametrize("command", ["uniform", "greedy"])
@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.npz", "x.json", "x.safetensors.index.json"])
def test_an_output_named_like_a_file_is_refused(
    command: str, name: str, task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--task", task, *checkpoints, "-o", str(tmp_path / name)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "the output is a directory for soup.safetensors, trace.json and results.json" in err
    assert not (tmp_path / name).exists()


def test_without_torch_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pysoup.cli.models.find_spec", lambda name: None)
    assert main(["uniform", "--task", "t.py:T", "a.pt", "-o", "run"]) == 1
    assert "pip install 'model-soups[torch]' (in a checkout: '.[torch]')" in capsys.readouterr().err
