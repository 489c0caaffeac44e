"""The sets of a task: plain torch's scores, samples and training data drawn once, what is refused; and figures."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from analysis_task import Rule, data, plain_scores, rule, with_weights
from torch.nn.functional import cross_entropy

from pysoup.analysis import Sets, drawing
from pysoup.errors import BackendError, OutputError, SoupError


def test_scores_and_logits_are_plain_torchs_in_the_order_of_the_task() -> None:
    sets = Sets(Rule())
    sets.model.load_state_dict({name: tensor + 0.3 for name, tensor in rule().items()})
    sets.model.train()
    found, logits = sets.score(), sets.logits()
    assert list(found) == ["heldout", "test", "wide", "narrow"]
    assert (sets.test, sets.shifts) == ("test", ["wide", "narrow"])
    for name, (accuracy, nll) in plain_scores(sets.model.state_dict()).items():
        assert found[name]["accuracy"] == accuracy
        assert found[name]["nll"] == pytest.approx(nll, rel=1e-5)
        own, labels = logits[name]
        assert (own.argmax(1) == labels).double().mean().item() == accuracy
        assert cross_entropy(own, labels).item() == pytest.approx(nll, rel=1e-5)
    assert sets.model.training
    assert list(sets.score(names=["wide"])) == ["wide"]


def test_training_data_is_a_set_where_it_is_asked_for() -> None:
    sets = Sets(Rule(), train=0)
    sets.model.load_state_dict(rule())
    x, y = data(5, 50)
    with torch.no_grad():
        nll = cross_entropy(with_weights(rule()).eval()(x), y).item()
    assert sets.score()["train"]["nll"] == pytest.approx(nll, rel=1e-5)
    assert sum(Sets(Rule(), train=20).all["train"].samples) == 20


def test_samples_are_drawn_once_without_repeats_and_by_the_seed() -> None:
    first, again, other = (Sets(Rule(), samples=40, seed=seed) for seed in (0, 0, 1))
    assert all(sum(part.samples) == 40 for part in first.all.values())
    assert first.fingerprints == again.fingerprints != other.fingerprints
    rows = torch.cat([batch[0] for batch in first.tests["wide"].batches()])
    assert len(rows.unique(dim=0)) == 40
    assert {tuple(row.tolist()) for row in rows} <= {tuple(row.tolist()) for row in data(3, 80, 2.0)[0]}
    assert sum(Sets(Rule(), samples=1000).heldout.samples) == 60


def test_tasks_that_cannot_be_scored_are_refused() -> None:
    class Wrong(Rule):
        def tests(self) -> dict[str, Any]:
            return {"heldout": data(2, 9)}

    class NoModel(Rule):
        def model(self) -> Any:
            return 3

    class Untrained(Rule):
        train = None  # type: ignore[assignment]

    with pytest.raises(SoupError, match="name of ours"):
        Sets(Wrong())
    with pytest.raises(SoupError, match="made no model"):
        Sets(NoModel())
    with pytest.raises(SoupError, match="lacks train"):
        Sets(Untrained(), train=0)


def test_same_figure_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        figure, (axes,) = drawing.panels(1)
        axes.plot([1, 2], [3, 4], label="line")
        axes.legend()
        drawing.save_figure(figure, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert ">line</text>" in (tmp_path / "a.svg").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "b.svg"]
    drawing.save_figure(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="not a kind of figure"):
        drawing.check_figure(tmp_path / "a.gif")
    with pytest.raises(OutputError, match="no such directory"):
        drawing.check_figure(tmp_path / "absent" / "a.svg")
    real = importlib.util.find_spec
    monkeypatch.setattr(drawing, "find_spec", lambda name: None if name == "matplotlib" else real(name))
    with pytest.raises(BackendError, match=r"pip install 'model-soups\[demo\]'"):
        drawing.check_figure(tmp_path / "a.svg")
