"""``pysoup learned``: what it writes and prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from linear_task import NAMES, held_out, linear, write_checkpoints, write_task
from safetensors.torch import load_file

from pysoup import learned_soup
from pysoup.cli import main
from pysoup.cli.learned import granules


@pytest.fixture
def task(tmp_path: Path) -> str:
    return write_task(tmp_path)


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[str]:
    return write_checkpoints(tmp_path)


def test_it_writes_the_soup_the_trace_and_the_scores_of_test_sets(
    task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = ["--lr", "0.5", "--epochs", "4", "--batch", "50", "--seed", "3", "--keep", "lowest", "--memory", "8MiB"]
    assert main(["learned", "--task", task, *checkpoints, "-o", str(run), *options]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    soup = learned_soup(checkpoints, linear(), held_out(1), lr=0.5, epochs=4, batch=50, seed=3, keep="lowest")
    results = json.loads((run / "results.json").read_text())
    trace = json.loads((run / "trace.json").read_text())
    assert results["heldout"] == soup.score
    assert set(results["tests"]) == {"shifted"}
    assert trace["granules"] == [{"name": "model", "tensors": ["weight"], "weights": soup.weights}]
    assert (trace["beta"], trace["losses"]) == (soup.beta, soup.losses)
    assert torch.equal(load_file(run / "soup.safetensors")["weight"], soup.state_dict()["weight"])
    assert not (run / "journal").exists()
    lines = out.splitlines()
    assert lines[0].split() == ["epoch", "steps", "loss", "beta", "held-out", "loss", "held-out", "accuracy"]
    assert [line.split()[:2] for line in lines[1:5]] == [[str(n), "6"] for n in (1, 2, 3, 4)]
    assert lines[5].split() == ["checkpoint", "weight"]
    assert [line.split() for line in lines[6:10]] == [
        [path, f"{weight:.4f}"] for path, weight in zip(checkpoints, soup.weights, strict=True)
    ]
    assert lines[10] == f"learned soup of 4: held-out accuracy {soup.score:.5g}"
    assert "note: the weights were learned on the held-out data" in out
    # The one that is all noise has hardly a share.
    assert soup.weights[NAMES.index("useless")] < 0.05


def test_few_granules_are_rows_and_files_are_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "task.py").write_text(TWO_LAYERS)
    paths = two_layer_checkpoints(tmp_path)
    asked = ["learned", "--task", f"{tmp_path}/task.py:Task", *paths, "-o"]
    assert main([*asked, str(tmp_path / "few"), "--granularity", r"^(\d)\.", "--preset", "mehl"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[6].split() == ["weights", "one", "two", "three"]
    assert [line.split()[0] for line in lines[7:9]] == ["0", "2"]
    assert all(sum(map(float, line.split()[1:])) == pytest.approx(1, abs=2e-3) for line in lines[7:9])
    monkeypatch.setattr("pysoup.cli.learned._MOST_GRANULES", 3)
    assert main([*asked, str(tmp_path / "many"), "--granularity", "tensor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4].split() == ["checkpoint", "weight", "least", "most"]
    assert [line.split()[0] for line in lines[5:8]] == paths
    assert lines[8] == "(weight: over all parameters; least and most: of 4 granules)"


def test_a_run_that_ended_early_is_gone_on_with(
    task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "task.py"
    whole = file.read_text()
    file.write_text(whole + "\nTask.tests = lambda self: 1 / 0\n")
    asked = ["learned", *checkpoints, "-o", str(tmp_path / "run"), "--no-temperature", "--task"]
    assert main([*asked, task]) == 1
    (tmp_path / "task_2.py").write_text(whole)
    assert main([*asked, f"{tmp_path}/task_2.py:Task"]) == 0
    journal = tmp_path / "run" / "journal"
    assert f"note: went on with the run in {journal}: 3 steps were on record there\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "trace.json").read_text())["beta"] == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--granularity", "nothing"], "a pattern for granules takes no tensor: found 'nothing'"),
        (["--lr", "0"], "lr must be a number"),
        (["--epochs", "0"], "epochs is too small: found 0"),
        (
            ["--lr", "1e306", "--parametrization", "hyperplane"],
            "the loss or its gradient is not finite at step 2: lower the learning",
        ),
    ],
)
def test_errors_are_one_line_and_leave_nothing(
    options: list[str],
    message: str,
    task: str,
    checkpoints: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    assert main(["learned", "--task", task, *checkpoints, "-o", str(run), *options]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"pysoup: error: {message}")
    assert err.count("\n") == 1
    assert not (run / "results.json").exists()
    assert not (run / "soup.safetensors").exists()


def test_one_checkpoint_is_refused(
    task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["learned", "--task", task, checkpoints[0], "-o", str(run)]) == 1
    assert capsys.readouterr().err == ("pysoup: error: a learned soup needs two checkpoints or more: found 1\n")
    assert not run.exists()


def test_an_error_of_the_task_says_at_which_step_and_line(
    task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "from task import Task as Whole\n\nclass Task(Whole):\n    def forward(self, model, batch):\n        1 / 0\n"
    (tmp_path / "failing.py").write_text(code)
    run = tmp_path / "run"
    assert main(["learned", "--task", f"{tmp_path}/failing.py:Task", *checkpoints, "-o", str(run)]) == 1
    expected = "learning, step 1 failed: ZeroDivisionError: division by zero (failing.py:5)\n"
    assert capsys.readouterr().err == f"pysoup: error: {expected}"


def test_granularity_is_a_kind_or_patterns() -> None:
    assert granules([]) is None
    assert granules(["layer"]) == "layer"
    assert granules(["model", "layer"]) == ["model", "layer"]
    assert granules([r"^(\d)\."]) == [r"^(\d)\."]


TWO_LAYERS = """
import torch
from torch import nn

class Task:
    def model(self):
        return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))

    def heldout(self):
        g = torch.Generator().manual_seed(1)
        return torch.randn(60, 4, generator=g), torch.randint(0, 3, (60,), generator=g)
"""


def two_layer_checkpoints(folder: Path) -> list[str]:
    from safetensors.torch import save_file

    shapes = {"0.weight": (5, 4), "0.bias": (5,), "2.weight": (3, 5), "2.bias": (3,)}
    generator = torch.Generator().manual_seed(2)
    paths = [str(folder / f"{name}.safetensors") for name in ("one", "two", "three")]
    for path in paths:
        save_file({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, path)
    return paths
