"""Soups against ensembles of pairs: accuracies as plain torch has them, logits computed once, resuming, the figure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from analysis_task import Kitchen, Rule, kitchen, mixed, plain_scores, with_weights

from pysoup.analysis import angle_gains, pair_scores
from pysoup.cli import main


@pytest.fixture
def files(tmp_path: Path) -> Kitchen:
    return kitchen(tmp_path, 4)


def ensemble_accuracies(files: Kitchen, i: int, j: int) -> dict[str, float]:
    task, found = Rule(), {}
    models = [with_weights(files.state(files.paths[k])).eval() for k in (i, j)]
    for name, (x, y) in {"heldout": task.heldout(), **task.tests()}.items():
        with torch.no_grad():
            logits = (models[0](x) + models[1](x)) / 2
        found[name] = (logits.argmax(1) == y).double().mean().item()
    return found


def test_soups_and_ensembles_are_plain_torchs(files: Kitchen) -> None:
    found = pair_scores(Rule(), files.paths)
    states = [files.state(path) for path in files.paths]
    assert len(found.pairs) == 6
    for pair in found.pairs:
        soup = plain_scores(mixed([states[pair.first], states[pair.second]], [0.5, 0.5]))
        assert pair.soup == pytest.approx({name: scores[0] for name, scores in soup.items()})
        assert pair.ensemble == pytest.approx(ensemble_accuracies(files, pair.first, pair.second))
    for index, accuracies in found.alone.items():
        assert accuracies == pytest.approx({n: s[0] for n, s in plain_scores(states[index]).items()})


def test_agreement_counts_pairs_on_the_mean_of_the_sets(files: Kitchen) -> None:
    found = pair_scores(Rule(), files.paths)
    assert found.panels == {"test": ["test"], "mean of 2 shifts": ["wide", "narrow"]}
    agreement = found.agreement(["wide", "narrow"])
    soups = [(pair.soup["wide"] + pair.soup["narrow"]) / 2 for pair in found.pairs]
    ensembles = [(pair.ensemble["wide"] + pair.ensemble["narrow"]) / 2 for pair in found.pairs]
    alone = {i: (a["wide"] + a["narrow"]) / 2 for i, a in found.alone.items()}
    differences = [s - e for s, e in zip(soups, ensembles, strict=True)]
    assert agreement.mean_difference == pytest.approx(sum(differences) / 6)
    assert agreement.soup_wins == sum(d > 0 for d in differences)
    beats = [s > max(alone[p.first], alone[p.second]) for s, p in zip(soups, found.pairs, strict=True)]
    assert agreement.soup_beats_both == sum(beats)
    expected = torch.corrcoef(torch.tensor([soups, ensembles], dtype=torch.float64))[0, 1].item()
    assert agreement.pearson == pytest.approx(expected)


def test_logits_of_each_model_are_computed_once(files: Kitchen) -> None:
    Rule.forwards = 0
    pair_scores(Rule(), files.paths, logit_memory=1)  # not even one fits: they go to a file
    assert Rule.forwards == 4 * (4 + 6)  # sets times (models + soups)


def test_known_scores_are_not_computed_again_and_serve_angles_too(files: Kitchen, tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    few = pair_scores(Rule(), files.paths, pairs=3, seed=1, scores=scores)
    Rule.forwards = 0
    assert pair_scores(Rule(), files.paths, pairs=3, seed=1, scores=scores).to_json() == few.to_json()
    assert Rule.forwards == 0
    more = pair_scores(Rule(), files.paths, scores=scores)
    fresh = pair_scores(Rule(), files.paths)
    assert more.to_json() == fresh.to_json()
    Rule.forwards = 0
    gains = angle_gains(Rule(), files.paths, files.start, scores=scores)
    assert Rule.forwards == 0
    assert gains.pairs[0].gain == pytest.approx(angle_gains(Rule(), files.paths, files.start).pairs[0].gain)


def test_state_dictionaries_are_taken_too(files: Kitchen) -> None:
    states = [{n: t.float() for n, t in files.state(path).items()} for path in files.paths[:2]]
    found = pair_scores(Rule(), states)
    assert found.pairs[0].soup == pair_scores(Rule(), files.paths[:2]).pairs[0].soup
    assert found.pairs[0].learning_rate is None


def test_command_prints_writes_and_draws(files: Kitchen, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, figure = tmp_path / "pairs.json", tmp_path / "pairs.svg"
    args = ["analyze", "pairs", *files.paths, "--task", files.task, "--pairs", "4", "--json"]
    assert main([*args, "-o", str(out), "--figure", str(figure)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text())
    assert len(printed["pairs"]) == 4
    assert "mean of 2 shifts" in figure.read_text()
