"""The greedier soup against the recipe in plain Python, with and without its prefilter."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from score_tables import Table, tables
from soup_models import Interrupted, decisions, images, mlp, never, plain_mean, pool, same_bits

from pysoup import HeldOut, Soup, SoupError, greedier_soup
from pysoup.evaluate import evaluate

TABLES = 60
pytestmark = pytest.mark.usefixtures("one_thread")


class Helpful(Table):
    """Mixtures are better than their ingredients, up to four of these."""

    def logits(self, shares: Sequence[float]) -> torch.Tensor:
        logits = super().logits(shares).clone()
        members = sum(share > 0 for share in shares)
        logits[torch.arange(self.samples), self.labels] += 0.5 * min(members - 1, 3)
        return logits


def pools() -> Iterator[tuple[Table, random.Random]]:
    for table, rng in tables(9000, TABLES):
        kind = rng.choice([Table, Helpful])
        yield kind(table.seed, table.count, table.samples, table.classes, table.batch_size, table.nan), rng


def ensemble_score(table: Table, members: Sequence[int], metric: str) -> float:
    """Of the averaged logits: f32, summed in this order, then scaled; ranks counted by hand."""
    total = table.of([members[0]]).numpy().copy()
    for member in members[1:]:
        total += table.of([member]).numpy()
    mean = total * np.float32(1.0 / len(members))
    labels = table.labels.numpy()
    own = mean[np.arange(table.samples), labels]
    if metric == "nll":
        wide = mean.astype(np.float64)
        top = wide.max(1)
        return float((top + np.log(np.exp(wide - top[:, None]).sum(1)) - own).mean())
    k = 1 if metric == "accuracy" else int(metric.removeprefix("top"))
    classes = np.arange(table.classes)
    ahead = (mean > own[:, None]) | ((mean == own[:, None]) & (classes < labels[:, None]))
    return float(((ahead.sum(1) < k) & ~np.isnan(mean).any(1)).sum() / table.samples)


@dataclass
class PlainGreedier:
    """The recipe with every average scored in full."""

    table: Table
    metric: str
    options: dict[str, object]
    known: bool

    def run(self) -> PlainGreedier:
        table, sign = self.table, -1.0 if self.metric == "nll" else 1.0
        self.alone = [table.score([i], self.metric, table.as_given()) for i in range(table.count)]
        usable = [i for i in range(table.count) if not math.isnan(self.alone[i])]
        self.kept: list[int] = []
        self.rounds: list[tuple[set[int], bool]] = []
        if not usable:
            return self
        first = max(usable, key=lambda i: (sign * self.alone[i], -i))
        limit = self.options["max_ingredients"] or table.count
        pays = self.options["early_rejection"] and len(usable) - 1 > 1 + self.known and limit > 1
        batches = table.hardest_first([first] if self.known else range(table.count)) if pays else table.as_given()
        self.kept, self.best = [first], table.score([first], self.metric, batches)
        while len(self.kept) < limit:
            left = [i for i in usable if i not in self.kept]
            if self.options["prefilter"]:
                rank = {i: sign * ensemble_score(table, [*self.kept, i], self.metric) for i in left}
                left.sort(key=lambda i: (math.isnan(rank[i]), -rank[i], i))
                left = sorted(left[: self.options["prefilter"]])
            scores = {i: table.score([*self.kept, i], self.metric, batches) for i in left}
            numbers = [i for i in left if not math.isnan(scores[i])]
            winner = max(numbers, key=lambda i: (sign * scores[i], -i), default=None)
            if winner is not None:
                threshold = sign * self.best + self.options["min_delta"]
                new = sign * scores[winner]
                if not (new > threshold if self.options["accept"] == ">" else new >= threshold):
                    winner = None
            if left:
                self.rounds.append((set(left), winner is not None))
            if winner is None:
                break
            self.kept.append(winner)
            self.best = scores[winner]
        return self


def drawn_options(rng: random.Random) -> dict[str, object]:
    return {
        "accept": rng.choice([">=", ">"]),
        "min_delta": rng.choice([0.0, 0.0, 0.02, 0.1]),
        "max_ingredients": rng.choice([None, None, 1, 3]),
        "prefilter": rng.choice([None, None, 1, 2, 4]),
        "early_rejection": rng.random() < 0.8,
    }


@pytest.mark.parametrize("metric", ["accuracy", "top2", "nll"])
def test_ingredients_order_and_score_are_those_of_the_plain_recipe(metric: str) -> None:
    stopped = added = filtered = 0
    for table, rng in pools():
        options, known = drawn_options(rng), rng.random() < 0.3
        plain = PlainGreedier(table, metric, options, known).run()
        told = f"table {table.seed}: {options}, known={known}"
        model = table.model()
        scores = plain.alone if known else None
        run = lambda: greedier_soup(table.states(), model, table.heldout(), metric, scores=scores, **options)  # noqa: B023, E731
        if not plain.kept:
            with pytest.raises(SoupError, match="every candidate scores NaN"):
                run()
            continue
        soup = run()
        assert soup.ingredients == [f"checkpoints[{i}]" for i in plain.kept], told
        assert soup.weights == [1 / len(plain.kept)] * len(plain.kept)
        assert soup.score == plain.best, told
        expected = torch.zeros(1, table.count)
        expected[0, plain.kept] = 1 / len(plain.kept)
        assert torch.equal(model.weight.detach(), expected), told
        rounds: list[set[int]] = []
        for step in soup.trace[1:]:
            if step.note == "its own score is NaN: refused":
                continue
            size = step.ingredients_after - step.accepted
            rounds += [set() for _ in range(size - len(rounds))]
            rounds[size - 1].add(step.index)
            if step.bound is not None:
                stopped += 1
                assert not step.accepted
                assert step.candidate_score is None
                assert step.samples < step.of == table.samples, told
        assert rounds == [tried for tried, _ in plain.rounds], told
        assert [s.index for s in soup.trace if s.accepted] == plain.kept
        added += len(plain.kept) - 1
        filtered += any(len(tried) < table.count - number - 1 for number, (tried, _) in enumerate(plain.rounds))
    assert min(stopped, added) > TABLES / 4
    assert filtered > 3


def test_of_equal_additions_the_one_given_first_is_taken_whatever_is_tried_first() -> None:
    """Single scores, the worst for the first, so that it is tried last."""
    table = Table(seed=3, count=5, samples=40, classes=3, batch_size=40)
    best = table.of([0])

    class Flat(Table):
        def logits(self, shares: Sequence[float]) -> torch.Tensor:
            return best

    flat = Flat(seed=3, count=5, samples=40, classes=3, batch_size=40)
    soup = greedier_soup(flat.states(), flat.model(), flat.heldout(), scores=[0.1, 0.2, 0.3, 0.4, 0.5])
    assert soup.ingredients == [f"checkpoints[{i}]" for i in (4, 0, 1, 2, 3)]


def test_the_model_holds_the_average_and_its_flags_are_kept() -> None:
    model = mlp()
    states = pool(model, 6, spread=0.3)
    model.train()
    model[0].eval()
    held = HeldOut(images(), batch_size=32)
    soup = greedier_soup({str(i): state for i, state in enumerate(states)}, model, held, prefilter=3)
    kept = [states[int(name)] for name in soup.ingredients]
    assert len(kept) > 1
    assert same_bits(dict(model.state_dict()), plain_mean(kept))
    assert same_bits(soup.state_dict(), plain_mean(kept))
    assert soup.score == evaluate(model, held)
    assert [m.training for m in model] == [False, True, True, True]
    assert soup.recipe == "greedier"
    assert soup.options["prefilter"] == 3


@pytest.mark.parametrize("prefilter", [None, 2])
def test_a_run_goes_on_where_it_was_stopped_and_scores_nothing_twice(tmp_path: Path, prefilter: int | None) -> None:
    states = pool(mlp(), 5, spread=0.3)
    plain = greedier_soup(states, mlp(), HeldOut(images(), batch_size=32), prefilter=prefilter)
    forward = Interrupted()

    def make() -> Soup:
        held = HeldOut(images(), forward, batch_size=32)
        return greedier_soup(states, mlp(), held, prefilter=prefilter, run=tmp_path / "run")

    soup, starts = forward.started_again(make, 14)
    assert starts > 2
    assert soup.ingredients == plain.ingredients
    assert soup.score == plain.score
    assert soup.passes == plain.passes
    assert decisions(soup) == decisions(plain)
    # Each stop costs at most the pass that was under way: 8 batches, once they are small.
    once = len(set(forward.seen))
    assert len(forward.seen) <= once + 8 * (starts - 1)
    before = len(forward.seen)
    forward.left = 1000
    assert make().ingredients == plain.ingredients
    assert len(forward.seen) == before


def test_a_model_that_scores_nan_against_what_was_given_is_no_first_ingredient() -> None:
    states = pool(mlp(), 6, spread=0.3)
    states[2]["0.weight"][0, 0] = math.nan
    scores = [1.0, 2.0, 0.1, 3.0, 4.0, 5.0]
    held = HeldOut(images(), batch_size=32)
    model = mlp()
    soup = greedier_soup(states, model, held, "nll", scores=scores)
    assert soup.trace[0].note.startswith("the soup with it scores NaN: refused")
    assert soup.trace[1].index == 0
    assert soup.trace[1].accepted
    assert "checkpoints[2]" not in soup.ingredients
    assert soup.score == pytest.approx(evaluate(model, held, "nll"))
    with pytest.raises(SoupError, match="every candidate scores NaN"):
        greedier_soup([states[2]] * 5, mlp(), held, "nll", scores=[0.1] * 5)


def test_the_prefilter_takes_the_logits_that_scoring_the_models_gave() -> None:
    states = pool(mlp(), 5, spread=0.3)
    passes = [0]

    def forward(model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        passes[0] += 1
        return model(batch[0]), batch[1]

    greedier_soup(
        states, mlp(), HeldOut(images(), forward), prefilter=2, max_ingredients=1, early_rejection=False, memory=0
    )
    assert passes[0] == 5
    scores = [0.1, 0.2, 0.3, 0.4, math.nan]
    greedier_soup(
        states, mlp(), HeldOut(images(), forward), scores=scores, prefilter=2, max_ingredients=2, early_rejection=False
    )
    assert passes[0] == 5 + 4 + 2  # no logits of the model that is never kept, then the two that are tried


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"accept": "="}, "accept"),
        ({"min_delta": math.inf}, "min_delta"),
        ({"max_ingredients": 0}, "max_ingredients"),
        ({"prefilter": 0}, "prefilter"),
        ({"prefilter": "two"}, "prefilter"),
        ({"prefilter": 2, "memory": "a lot"}, "a lot"),
        ({"memory": "a lot"}, "a lot"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_scored(options: dict[str, object], word: str) -> None:
    model = mlp()
    with pytest.raises(SoupError, match=word):
        greedier_soup(pool(model, 3, spread=0.3), model, HeldOut(images(), never), **options)


def test_copies_and_nan_are_noted() -> None:
    model = mlp()
    states = pool(model, 3, spread=0.3)
    poisoned = {name: tensor.clone() for name, tensor in states[1].items()}
    poisoned["0.weight"][0, 0] = math.nan
    soup = greedier_soup({"a": states[0], "nan": poisoned, "b": states[2], "copy": states[0]}, model, images(), "nll")
    notes = {step.ingredient: step.note for step in soup.trace}
    assert notes["nan"].startswith("its own score is NaN: refused")
    assert notes["copy"] == "same weights as a"
    assert "nan" not in soup.ingredients
