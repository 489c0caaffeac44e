"""``pysoup pruned``, ``greedier`` and ``ensemble`` from a task file to a directory of results."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pysoup import HeldOut, greedier_soup, greedy_ensemble, logit_ensemble, pruned_soup
from pysoup.cli import main
from pysoup.soups import Ensemble, Soup

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
COMMANDS = ["pruned", "greedier", "ensemble"]
NAMES = ("useless", "good", "better", "fair")


@pytest.fixture
def task(tmp_path: Path) -> str:
    (tmp_path / "task.py").write_text(TASK)
    return f"{tmp_path / 'task.py'}:Task"


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[str]:
    """Three noisy copies of the true weights and one that is all noise."""
    rule = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    noise = torch.Generator().manual_seed(3)
    paths = []
    for name, scale in zip(NAMES, (30.0, 0.5, 0.4, 0.6), strict=True):
        paths.append(str(tmp_path / f"{name}.safetensors"))
        save_file({"weight": rule + scale * torch.randn(3, 8, generator=noise)}, paths[-1])
    return paths


def held_out(seed: int) -> HeldOut:
    rule = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(seed))
    return HeldOut([(x, (x @ rule.T).argmax(1))])


def same_by_hand(made: Soup | Ensemble, run: Path) -> None:
    """The files tell what the function of the same name returns."""
    trace = json.loads((run / "trace.json").read_text())
    results = json.loads((run / "results.json").read_text())
    assert trace["ingredients"] == results["ingredients"] == made.ingredients
    assert trace["score"] == results["heldout"] == made.score
    assert trace["recipe"] == results["recipe"] == made.recipe
    assert [step["accepted"] for step in trace["trace"]] == [step.accepted for step in made.trace]
    model = torch.nn.Linear(8, 3, bias=False)
    if isinstance(made, Soup):
        written = load_file(run / "soup.safetensors")
        assert torch.equal(written["weight"], made.state_dict()["weight"])
        x, labels = next(iter(held_out(2)))
        logits = x @ written["weight"].T
        if trace["metric"] == "nll":
            expected = torch.nn.functional.cross_entropy(logits.double(), labels).item()
        else:
            expected = (logits.argmax(1) == labels).sum().item() / 300
    else:
        assert not (run / "soup.safetensors").exists()
        expected = made.evaluate(model, held_out(2))
    assert results["tests"] == {"shifted": pytest.approx(expected, rel=1e-6)}
    assert not (run / "journal").exists()


def test_pruned_drops_what_does_not_help(
    task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["pruned", "--task", task, *checkpoints, "-o", str(run), "--passes", "1"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    verdicts = dict(re.findall(r"(\w+)\.safetensors .* (dropped|stays)", out))
    assert verdicts["useless"] == "dropped"
    assert set(verdicts) == set(NAMES)
    assert "soup without it" in out
    made = pruned_soup(checkpoints, torch.nn.Linear(8, 3, bias=False), held_out(1), passes=1)
    assert f"pruned soup of {len(made.ingredients)}: held-out accuracy {made.score:.5g}\n" in out
    same_by_hand(made, run)
    for name in ("soup.safetensors", "trace.json", "results.json"):
        assert f"wrote {run / name}" in out


def test_greedier_prints_each_round(
    task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = ["--prefilter", "2", "--max-ingredients", "2", "--memory", "1k", "--metric", "nll"]
    assert main(["greedier", "--task", task, *checkpoints, "-o", str(run), *options]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert len(re.findall(r"(\w+)\.safetensors .* (kept|refused)", out)) == 3
    made = greedier_soup(
        checkpoints, torch.nn.Linear(8, 3, bias=False), held_out(1), "nll", prefilter=2, max_ingredients=2
    )
    assert f"greedier soup of 2: held-out nll {made.score:.5g}\n" in out
    same_by_hand(made, run)


def test_ensemble_selects_or_takes_all_and_writes_no_weights(
    task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = ["--select", "best", "--replacement", "--max-ingredients", "5", "--accept", ">"]
    assert main(["ensemble", "--task", task, *checkpoints, "-o", str(run), *options]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    model = torch.nn.Linear(8, 3, bias=False)
    made = greedy_ensemble(
        checkpoints, model, held_out(1), select="best", replacement=True, max_ingredients=5, accept=">"
    )
    assert f"greedy ensemble of {len(made.ingredients)}: held-out accuracy {made.score:.5g}\n" in out
    assert "ensemble with it" in out
    assert "soup.safetensors" not in out
    same_by_hand(made, run)
    assert main(["ensemble", "--task", task, *checkpoints, "-o", str(tmp_path / "all"), "--all"]) == 0
    out = capsys.readouterr().out
    made = logit_ensemble(checkpoints, model, held_out(1))
    assert f"ensemble of 4: held-out accuracy {made.score:.5g}\n" in out
    assert "4 passes over the held-out set" in out
    same_by_hand(made, tmp_path / "all")


def test_options_of_a_selection_are_refused_where_nothing_is_selected(
    task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--all", "--select", "best", "--max-ingredients", "2"]
    assert main(["ensemble", "--task", task, *checkpoints, "-o", str(tmp_path / "run"), *options]) == 2
    assert "--all selects nothing: --select, --max-ingredients cannot go with it" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_data_without_a_fingerprint_is_scored_all_the_same(
    command: str, task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = """

class Own:
    pass

class NoFingerprint(Task):
    def _data(self, seed):
        return [(Own(), *super()._data(seed)[0])]

    def forward(self, model, batch):
        return model(batch[1]), batch[2]
"""
    file = tmp_path / "task.py"
    file.write_text(file.read_text() + own)
    run = tmp_path / "run"
    assert main([command, "--task", f"{file}:NoFingerprint", *checkpoints, "-o", str(run)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "note: had it been killed, this run could not have gone on: held-out batch 0 has no fingerprint" in out
    assert json.loads((run / "results.json").read_text())["tests"].keys() == {"shifted"}


@pytest.mark.parametrize("command", COMMANDS)
def test_results_of_an_earlier_run_are_kept_unless_forced(
    command: str, task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["uniform", "--task", task, *checkpoints, "-o", str(run)]) == 0
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
    assert json.loads((run / "results.json").read_text())["recipe"] != "uniform"


@pytest.mark.parametrize("command", COMMANDS)
def test_entries_patterns_and_recorded_scores_choose_the_candidates(
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
    for number in range(2):
        states = {"model": {"weight": torch.zeros(3, 8)}, "ema": {"weight": torch.ones(3, 8) * number}}
        torch.save(states, tmp_path / f"{number}.pt")
    assert main([command, "--task", task, f"{tmp_path}/*.pt", "-o", str(tmp_path / "ema"), "--entry", "ema"]) == 0
    assert json.loads((tmp_path / "ema" / "results.json").read_text())["recipe"]


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


def test_replacement_without_a_limit_is_refused(
    task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ensemble", "--task", task, *checkpoints, "-o", str(tmp_path / "run"), "--replacement"]) == 1
    assert "replacement needs max_ingredients" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_without_torch_the_error_says_what_to_install(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pysoup.cli.models.find_spec", lambda name: None)
    assert main([command, "--task", "t.py:T", "a.pt", "-o", "run"]) == 1
    assert "pip install 'model-soups[torch]' (in a checkout: '.[torch]')" in capsys.readouterr().err
