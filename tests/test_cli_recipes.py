"""``pysoup pruned``, ``greedier`` and ``ensemble`` from a task file to a directory of results."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from linear_task import NAMES, held_out, linear, write_checkpoints, write_task
from safetensors.torch import load_file

from pysoup import greedier_soup, greedy_ensemble, logit_ensemble, pruned_soup
from pysoup.cli import main
from pysoup.soups import Ensemble, Soup

COMMANDS = ["pruned", "greedier", "ensemble"]


@pytest.fixture
def task(tmp_path: Path) -> str:
    return write_task(tmp_path)


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[str]:
    return write_checkpoints(tmp_path)


def same_by_hand(made: Soup | Ensemble, run: Path) -> None:
    """The files tell what the function of the same name returns."""
    trace = json.loads((run / "trace.json").read_text())
    results = json.loads((run / "results.json").read_text())
    assert trace["ingredients"] == results["ingredients"] == made.ingredients
    assert trace["score"] == results["heldout"] == made.score
    assert trace["recipe"] == results["recipe"] == made.recipe
    assert [step["accepted"] for step in trace["trace"]] == [step.accepted for step in made.trace]
    model = linear()
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
    made = pruned_soup(checkpoints, linear(), held_out(1), passes=1)
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
    rows = re.findall(r"^ *\d+ +(\d+|-) +\S*?(\w+)\.safetensors .*  (kept|refused|not best)$", out, re.MULTILINE)
    assert rows == [("-", "better", "kept"), ("1", "fair", "not best"), ("1", "good", "kept")]
    made = greedier_soup(checkpoints, linear(), held_out(1), "nll", prefilter=2, max_ingredients=2)
    assert f"greedier soup of 2: held-out nll {made.score:.5g}\n" in out
    same_by_hand(made, run)


def test_greedier_tells_the_rounds_and_who_was_refused_from_who_was_not_the_best(
    task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["greedier", "--task", task, *checkpoints, "-o", str(run), "--no-early-rejection"]) == 0
    out = capsys.readouterr().out
    trace = json.loads((run / "trace.json").read_text())["trace"]
    rounds = [step["round"] for step in trace]
    assert out.splitlines()[0].split()[:3] == ["step", "round", "checkpoint"]
    verdicts = [re.split(r"\s{2,}", line.strip())[-1] for line in out.splitlines()[1 : len(trace) + 1]]
    assert rounds[0] is None
    assert verdicts[0] == "kept"
    last = max(rounds[1:])
    for number in range(1, last + 1):
        tried = [
            (step, verdict)
            for step, verdict, there in zip(trace, verdicts, rounds, strict=True)
            if there == number  # each was tried with all that were kept before
        ]
        assert len(tried) == 4 - number
        kept = [step for step, _ in tried if step["accepted"]]
        for step, verdict in tried:
            assert verdict == ("kept" if step["accepted"] else "not best" if kept else "refused")
        if kept:
            assert kept[0]["candidate_score"] == max(step["candidate_score"] for step, _ in tried)
        else:
            assert number == last
            assert all(step["candidate_score"] < step["best_score_before"] for step, _ in tried)
    assert {"not best", "refused"} <= set(verdicts)


def test_ensemble_selects_or_takes_all_and_writes_no_weights(
    task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = ["--select", "best", "--replacement", "--max-ingredients", "5", "--accept", ">"]
    assert main(["ensemble", "--task", task, *checkpoints, "-o", str(run), *options]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    model = linear()
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


def test_replacement_without_a_limit_is_refused(
    task: str, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ensemble", "--task", task, *checkpoints, "-o", str(tmp_path / "run"), "--replacement"]) == 1
    assert "replacement needs max_ingredients" in capsys.readouterr().err
