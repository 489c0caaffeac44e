"""Angles against gains: as plain torch has them, grouped by what differs, correlated with an honest p value."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from analysis_task import Kitchen, Rule, StateDict, kitchen, mixed, plain_scores
from scipy.stats import spearmanr

from pysoup.analysis import angle_gains
from pysoup.analysis.pairing import choose_pairs, correlation, how_many_use, larger_rate, what_differs
from pysoup.cli import main
from pysoup.errors import SoupError
from pysoup.record import Record


@pytest.fixture
def files(tmp_path: Path) -> Kitchen:
    return kitchen(tmp_path)


def record(**hyperparameters: object) -> Record:
    return Record(0.5, "accuracy", "max", None, "0", hyperparameters, 0, 1.0)


def matrices(state: StateDict) -> torch.Tensor:
    return torch.cat([tensor.flatten() for _, tensor in sorted(state.items()) if tensor.dim() > 1])


def accuracy(state: StateDict) -> float:
    scores = plain_scores(state)
    return sum(scores[name][0] for name in ("test", "wide", "narrow")) / 3


def test_angles_and_gains_are_plain_torchs(files: Kitchen) -> None:
    found = angle_gains(Rule(), files.paths, files.start)
    base, states = files.state(files.start), [files.state(path) for path in files.paths]
    assert [(pair.first, pair.second) for pair in found.pairs] == list(combinations(range(5), 2))
    assert found.sets == ["test", "wide", "narrow"]
    for pair in found.pairs:
        one, other = states[pair.first], states[pair.second]
        x, y = matrices(one) - matrices(base), matrices(other) - matrices(base)
        assert pair.angle == pytest.approx(math.degrees(math.acos(x @ y / x.norm() / y.norm())), rel=1e-8)
        gain = accuracy(mixed([one, other], [0.5, 0.5])) - (accuracy(one) + accuracy(other)) / 2
        assert pair.gain == pytest.approx(gain, abs=1e-12)
    every = found.correlations["all"]
    expected = spearmanr([p.angle for p in found.pairs], [p.gain for p in found.pairs])
    assert (every.rho, every.p_value) == pytest.approx((expected.statistic, expected.pvalue))


def test_norms_count_where_they_are_asked_for(files: Kitchen) -> None:
    found = angle_gains(Rule(), files.paths[:2], files.start, exclude_norms=False)
    base, one, other = (files.state(path) for path in (files.start, *files.paths[:2]))
    x, y = (torch.cat([(s[name] - base[name]).flatten() for name in sorted(s)]) for s in (one, other))
    assert found.pairs[0].angle == pytest.approx(math.degrees(math.acos(x @ y / x.norm() / y.norm())), rel=1e-8)


def test_pairs_are_grouped_by_what_differs(files: Kitchen) -> None:
    found = angle_gains(Rule(), files.paths, files.start)
    for pair in found.pairs:
        assert pair.group == ("seed" if (pair.first + pair.second) % 2 == 0 else "learning rate")
        assert pair.learning_rate == (1e-3 if pair.first % 2 == pair.second % 2 == 0 else 2e-3)
    assert list(found.correlations) == ["all", "learning rate", "seed"]
    assert found.correlations["learning rate"].pairs == 6
    assert found.correlations["seed"].pairs == 4


def test_what_differs_is_one_kind_several_or_unknown() -> None:
    first = record(learning_rate=1e-3, seed=1, mixup=0.0, augment_ops=1)
    assert what_differs(first, record(learning_rate=1e-3, seed=2, mixup=0.0, augment_ops=1)) == "seed"
    assert what_differs(first, record(learning_rate=2e-3, seed=2, mixup=0.0, augment_ops=1)) == "learning rate"
    assert what_differs(first, record(learning_rate=1e-3, seed=2, mixup=0.5, augment_ops=2)) == "augmentation"
    assert what_differs(first, record(learning_rate=2e-3, seed=2, mixup=0.5, augment_ops=1)) == "several"
    assert what_differs(first, record(learning_rate=1e-3, mixup=0.0, augment_ops=1, weight_decay=1)) == "weight decay"
    assert what_differs(first, None) == "not recorded"
    assert larger_rate(first, record(learning_rate=2e-3)) == 2e-3
    assert larger_rate(first, record()) is None


def test_groups_may_be_by_the_use_of_something(files: Kitchen) -> None:
    found = angle_gains(Rule(), files.paths, files.start, by=["mixup"])
    assert {pair.group for pair in found.pairs} == {"none"}
    without, with_it = record(mixup=0.0, label_smoothing=0.0), record(mixup=0.0, label_smoothing=0.1)
    names = ["mixup", "label_smoothing"]
    assert how_many_use(names, without, without) == "none"
    assert how_many_use(names, without, with_it) == "one"
    assert how_many_use(names, with_it, record(mixup=0.5, label_smoothing=0.0)) == "both"
    assert how_many_use(names, with_it, None) == "not recorded"
    with pytest.raises(SoupError, match="no such hyperparameter"):
        how_many_use(["mixin"], without, with_it)


def test_drawn_pairs_are_seeded_distinct_and_extend_one_another() -> None:
    few, more = choose_pairs(9, 5, seed=3), choose_pairs(9, 12, seed=3)
    assert more[:5] == few
    assert len(set(more)) == 12
    assert all(i < j for i, j in more)
    assert choose_pairs(9, 5, seed=4) != few
    assert len(choose_pairs(9)) == len(choose_pairs(9, 100)) == 36
    with pytest.raises(SoupError, match="two checkpoints"):
        choose_pairs(1)


def test_p_of_models_does_not_take_pairs_for_independent() -> None:
    # Both numbers of a pair are sums of one number for each model: the pairs are dependent, the models are not.
    low, naive = [], []
    for seed in range(30):
        random = np.random.default_rng(seed)
        u, v = random.standard_normal((2, 8))
        first = {(i, j): float(u[i] + u[j]) for i, j in combinations(range(8), 2)}
        second = {(i, j): float(v[i] + v[j]) for i, j in combinations(range(8), 2)}
        found = correlation(first, second, permutations=199, seed=seed)
        assert found.p_models is not None
        assert found.p_value is not None
        low.append(found.p_models < 0.05)
        naive.append(found.p_value < 0.05)
    assert sum(low) <= 5  # 1.5 expected
    assert sum(naive) > 8


def test_p_of_models_finds_what_is_there_and_needs_all_pairs() -> None:
    points = np.random.default_rng(0).standard_normal((8, 3))
    first = {(i, j): float(np.linalg.norm(points[i] - points[j])) for i, j in combinations(range(8), 2)}
    second = {pair: value**3 for pair, value in first.items()}
    found = correlation(first, second)
    assert found.rho == pytest.approx(1.0)
    assert found.p_models == pytest.approx(0.001)
    del first[0, 1]
    assert correlation(first, second).p_models is None
    assert correlation({(0, 1): 1.0, (0, 2): 2.0}, second).rho is None


def test_command_prints_writes_and_draws(files: Kitchen, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, figure = tmp_path / "angles.json", tmp_path / "angles.svg"
    args = ["analyze", "angles", *files.paths, "--base", files.start, "--task", files.task, "--pairs", "7"]
    assert main([*args, "-o", str(out), "--figure", str(figure)]) == 0
    printed = capsys.readouterr().out
    assert "what differs" in printed
    assert "learning rate" in printed
    assert len(json.loads(out.read_text())["pairs"]) == 7
    assert "what differs" in figure.read_text()
