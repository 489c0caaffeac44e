"""What holds of every command that makes something of checkpoints: what it takes, refuses, keeps and says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from linear_task import NAMES, linear, write_checkpoints, write_task
from safetensors.torch import load_file, save_file

from pysoup.cli import main

RECIPES = {
    "uniform": "uniform",
    "greedy": "greedy",
    "pruned": "pruned",
    "greedier": "greedier",
    "learned": "learned",
    "ensemble": "greedy ensemble",
}
COMMANDS = list(RECIPES)
SCORING = [command for command in COMMANDS if command != "learned"]
"""Those that apply models as they are to choose among them."""


@pytest.fixture
def task(tmp_path: Path) -> str:
    return write_task(tmp_path)


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[str]:
    return write_checkpoints(tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_results_of_an_earlier_run_are_kept_unless_forced(
    command: str, task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["uniform", "--task", task, *checkpoints[:2], "-o", str(run)]) == 0
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    again = [command, "--task", task, *checkpoints, "-o", str(run)]
    capsys.readouterr()
    assert main(again) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert main([*again, "--force"]) == 0
    # The weights of another recipe must not stand beside an ensemble's results.
    assert (run / "soup.safetensors").exists() == (command != "ensemble")
    assert json.loads((run / "results.json").read_text())["recipe"] == RECIPES[command]


@pytest.mark.parametrize("command", COMMANDS)
def test_patterns_and_recorded_scores_choose_the_candidates(
    command: str, task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "val.json").write_text(json.dumps({name: {"nll": len(name)} for name in NAMES}))
    chosen = ["--top", "2", "--by", "nll", "--lowest"]
    run = tmp_path / "run"
    assert main([command, "--task", task, f"{tmp_path}/*.safetensors", "-o", str(run), *chosen]) == 0
    out = capsys.readouterr().out
    trace = json.loads((run / "trace.json").read_text())
    tried = {*trace["ingredients"], *(step["ingredient"] for step in trace["trace"])}
    assert {Path(name).stem for name in tried} == {"good", "fair"}
    assert out.count(f"note: {tmp_path}/*.safetensors: 4 checkpoints\n") == 1
    assert out.count(f"note: 2 of 4 checkpoints by nll in {tmp_path}/val.json, lowest first\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_entry_is_taken_of_nested_files(command: str, task: str, tmp_path: Path) -> None:
    ema = {"weight": torch.randn(3, 8)}
    for number in range(2):
        torch.save({"model": {"weight": torch.zeros(3, 8)}, "ema": ema, "epoch": number}, tmp_path / f"{number}.pt")
    run = tmp_path / "run"
    assert main([command, "--task", task, f"{tmp_path}/*.pt", "-o", str(run), "--entry", "ema"]) == 0
    results = json.loads((run / "results.json").read_text())
    model = linear()
    model.load_state_dict(ema)
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))
    labels = (x @ torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).T).argmax(1)
    assert results["heldout"] == (model(x).argmax(1) == labels).sum().item() / 300
    if command != "ensemble":
        assert torch.equal(load_file(run / "soup.safetensors")["weight"], ema["weight"])


@pytest.mark.parametrize("command", COMMANDS)
def test_errors_are_one_line_and_leave_nothing(
    command: str, task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"weight": torch.zeros(3, 9)}, tmp_path / "wide.safetensors")
    run = tmp_path / "run"
    assert main([command, "--task", task, *checkpoints, str(tmp_path / "wide.safetensors"), "-o", str(run)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "wide.safetensors" in err
    assert not run.exists()


FAILING = """
from task import Task as Whole

class Task(Whole):
    metric = "charm"

    def forward(self, model, batch):
        x, labels = batch
        if model.weight[0, 0].abs() > 5:
            raise ValueError("odd weights")
        return model(x), labels

class Known(Task):
    metric = "accuracy"
"""


@pytest.mark.parametrize("command", SCORING)
def test_an_error_while_scoring_names_checkpoint_and_line_and_no_model_that_the_user_does_not_have(
    command: str, task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In Python it says what the model holds: see test_soups_greedy_refusals.py."""
    (tmp_path / "failing.py").write_text(FAILING)
    weights = torch.full((3, 8), 99.0)
    save_file({"weight": weights}, tmp_path / "odd.safetensors")
    odd = [str(tmp_path / "odd.safetensors")]
    assert main([command, "--task", f"{tmp_path}/failing.py:Known", *odd, "-o", str(tmp_path / "run")]) == 1
    line = FAILING[: FAILING.index("raise ValueError")].count("\n") + 1
    scored = "the uniform soup" if command == "uniform" else odd[0]
    expected = f"scoring {scored} failed: ValueError: odd weights (failing.py:{line})\n"
    assert capsys.readouterr().err == f"pysoup: error: {expected}"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_metric_says_where_it_was_asked_for(
    command: str, task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    asked = [command, *checkpoints, "-o", str(tmp_path / "run"), "--task"]
    unknown = "unknown metric: found 'charm', expected one of accuracy, top5 (any number), nll, macro_f1, mcc\n"
    assert main([*asked, f"{tmp_path}/failing.py:Task"]) == 1
    assert capsys.readouterr().err == f"pysoup: error: metric of {tmp_path}/failing.py:Task: {unknown}"
    assert main([*asked, task, "--metric", "charm"]) == 1
    assert capsys.readouterr().err == f"pysoup: error: --metric: {unknown}"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [command for command in SCORING if command != "uniform"])
def test_a_run_that_is_gone_on_with_says_so(
    command: str, task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "task.py"
    whole = file.read_text()
    file.write_text(whole + "\nTask.tests = lambda self: 1 / 0\n")
    asked = [command, *checkpoints, "-o", str(tmp_path / "run"), "--task"]
    assert main([*asked, task]) == 1
    assert f"tests() of the task failed: ZeroDivisionError: division by zero (task.py:{whole.count(chr(10)) + 2})" in (
        capsys.readouterr().err
    )
    journal = tmp_path / "run" / "journal"
    scores = journal.joinpath("journal.jsonl").read_text().count('"members"')
    (tmp_path / "task_2.py").write_text(whole)
    assert main([*asked, f"{tmp_path}/task_2.py:Task"]) == 0
    out = capsys.readouterr().out
    assert scores >= 4
    assert f"note: went on with the run in {journal}: {scores} scores were on record there\n" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_without_torch_the_error_says_what_to_install(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pysoup.cli.models.find_spec", lambda name: None)
    assert main([command, "--task", "t.py:T", "a.pt", "-o", "run"]) == 1
    assert "pip install 'model-soups[torch]' (in a checkout: '.[torch]')" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
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


def test_demo_refuses_a_directory_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("precious")
    assert main(["demo", "-o", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
