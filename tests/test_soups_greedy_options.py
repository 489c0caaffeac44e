"""What the greedy recipe can be asked for: random order, an improvement, a limit, further passes, replacement."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from score_tables import Table
from soup_models import images, mlp, pool
from torch import Tensor, nn

from pysoup import average_state_dicts
from pysoup.evaluate import HeldOut, Metric
from pysoup.soups import Soup, greedier_soup, greedy_ensemble, greedy_soup, pruned_soup


def pool_by(scores: dict[tuple[int, ...], float], count: int, **options: object) -> tuple[Soup, nn.Module]:
    """The greedy soup where the average of the ingredients ``(0, 0, 2)`` scores as told; 0 where nothing is told."""
    by_share = {tuple(round(k.count(i) / len(k), 4) for i in range(count)): score for k, score in scores.items()}

    def look_up(logits: Tensor, labels: Tensor) -> float:
        return by_share.get(tuple(round(share, 4) for share in logits[0].tolist()), 0.0)

    model = nn.Linear(count, 1, bias=False)
    held = HeldOut([None], lambda model, batch: (model.weight, torch.zeros(1)))
    states = [{"weight": row[None].clone()} for row in torch.eye(count)]
    return greedy_soup(states, model, held, Metric(look_up, "max"), **options), model


def tried(soup: Soup) -> list[tuple[int, bool]]:
    return [(step.index, step.accepted) for step in soup.trace]


def test_a_random_order_is_that_of_its_seed_and_needs_no_single_scores() -> None:
    orders = {}
    for seed in range(6):
        soup, _ = pool_by({}, 6, order="random", seed=seed, accept=">")
        orders[seed] = [step.index for step in soup.trace]
        shuffled = list(range(6))
        random.Random(seed).shuffle(shuffled)
        assert orders[seed] == shuffled
        assert all(step.single_score is None for step in soup.trace[1:])
        assert (soup.options["order"], soup.options["seed"]) == ("random", seed)
    assert len({tuple(order) for order in orders.values()}) > 3


def test_min_delta_asks_for_so_much_more() -> None:
    scores = {(0,): 0.5, (1,): 0.4, (2,): 0.3, (0, 1): 0.52, (0, 2): 0.53, (0, 1, 2): 0.6}
    assert tried(pool_by(scores, 3)[0]) == [(0, True), (1, True), (2, True)]
    assert tried(pool_by(scores, 3, min_delta=0.03)[0]) == [(0, True), (1, False), (2, True)]
    assert tried(pool_by(scores, 3, min_delta=0.05)[0]) == [(0, True), (1, False), (2, False)]
    exact = {(0,): 0.5, (1,): 0.25, (0, 1): 0.75}
    assert tried(pool_by(exact, 2, min_delta=0.25)[0]) == [(0, True), (1, True)]
    assert tried(pool_by(exact, 2, min_delta=0.25, accept=">")[0]) == [(0, True), (1, False)]


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (greedy_soup, {"order": "random", "seed": np.int64(3), "max_ingredients": np.int32(2), "passes": np.int64(2)}),
        (greedy_soup, {"order": np.arange(4)[::-1], "replacement": np.bool_(True), "passes": 2}),
        (greedy_soup, {"early_rejection": np.bool_(False), "min_delta": np.float32(0.5)}),
        (pruned_soup, {"passes": np.int64(2), "early_rejection": np.bool_(True)}),
        (greedier_soup, {"max_ingredients": np.int64(2), "prefilter": np.int64(2)}),
        (greedy_ensemble, {"max_ingredients": np.int64(2), "replacement": np.bool_(True)}),
    ],
)
def test_numbers_of_numpy_are_numbers(recipe: Callable[..., Any], options: dict[str, Any], tmp_path: Path) -> None:
    """Also where they are recorded and written as JSON."""
    states = pool(mlp(), 4, spread=0.3)
    made = recipe(states, mlp(), images(), run=tmp_path / "run", **options)
    made.save_trace(tmp_path / "trace.json")
    plain = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in options.items()}
    told = json.loads((tmp_path / "trace.json").read_text())
    assert told["options"].items() >= plain.items()
    assert recipe(states, mlp(), images(), run=tmp_path / "run", **plain).ingredients == made.ingredients


def test_it_ends_with_the_most_ingredients_asked_for() -> None:
    scores = {(0,): 0.5, (1,): 0.4, (2,): 0.3, (3,): 0.2, (0, 1): 0.6, (0, 1, 2): 0.7, (0, 1, 2, 3): 0.8}
    soup, model = pool_by(scores, 4, max_ingredients=2)
    assert tried(soup) == [(0, True), (1, True)]
    assert soup.notes == ["ended with max_ingredients=2: 2 checkpoints not tried"]
    assert torch.equal(model.weight, torch.tensor([[0.5, 0.5, 0, 0]]))
    assert len(pool_by(scores, 4, max_ingredients=4)[0].ingredients) == 4
    assert pool_by(scores, 4, max_ingredients=4)[0].notes == []
    assert pool_by(scores, 4, max_ingredients=1)[0].score == 0.5


def test_refused_ones_are_tried_again_while_a_pass_keeps_something() -> None:
    scores = {(0,): 0.9, (1,): 0.8, (2,): 0.7, (3,): 0.6}
    scores |= {(0, 1): 0.1, (0, 2): 0.1, (0, 3): 0.91, (0, 3, 1): 0.2, (0, 3, 2): 0.92, (0, 3, 2, 1): 0.93}
    assert tried(pool_by(scores, 4)[0]) == [(0, True), (1, False), (2, False), (3, True)]
    second = [(1, False), (2, True)]
    assert tried(pool_by(scores, 4, passes=2)[0])[4:] == second
    soup, _ = pool_by(scores, 4, passes=9)
    assert tried(soup)[4:] == [*second, (1, True)]
    assert soup.ingredients == [f"checkpoints[{i}]" for i in (0, 3, 2, 1)]
    assert soup.weights == [0.25] * 4
    assert soup.score == 0.93


def test_a_soup_that_refused_a_candidate_is_not_asked_again() -> None:
    scores = {(0,): 0.9, (1,): 0.8, (2,): 0.7, (0, 1): 0.95, (0, 1, 2): 0.1}
    soup, _ = pool_by(scores, 3, passes=5)
    assert tried(soup) == [(0, True), (1, True), (2, False)]


def test_with_replacement_one_may_count_several_times() -> None:
    scores = {(0,): 0.9, (1,): 0.8, (0, 1): 0.91, (0, 1, 0): 0.92, (0, 1, 0, 0): 0.93}
    soup, model = pool_by(scores, 2, passes=3, replacement=True)
    assert tried(soup) == [(0, True), (1, True), (0, True), (1, False), (0, True), (1, False)]
    assert soup.ingredients == ["checkpoints[0]", "checkpoints[1]"]
    assert soup.weights == [0.75, 0.25]
    assert torch.equal(model.weight, torch.tensor([[0.75, 0.25]]))
    assert [step.ingredients_after for step in soup.trace] == [1, 2, 3, 3, 4, 4]
    limited, _ = pool_by(scores, 2, passes=3, replacement=True, max_ingredients=3)
    assert limited.weights == [2 / 3, 1 / 3]


def test_a_soup_with_replacement_is_one_sum_with_one_rounding() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(7, 4), 3 * torch.randn(30, 7)
    data = (x, model(x).argmax(1))
    noise = (0.1, 0.3, 0.6)
    states = [{n: t + s * torch.randn_like(t) for n, t in model.state_dict().items()} for s in noise]
    soup = greedy_soup(states, model, data, "nll", passes=6, replacement=True)
    kept = [step.index for step in soup.trace if step.accepted]
    assert len(kept) > len(set(kept))
    expected = average_state_dicts([states[i] for i in kept])
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("early_rejection", [True, False])
def test_passes_and_seconds_are_told_of_each_step_and_of_all(early_rejection: bool) -> None:
    table = Table(14, count=8, samples=600, classes=4, batch_size=50)
    soup = greedy_soup(table.states(), table.model(), table.heldout(), early_rejection=early_rejection)
    seen = sum(step.samples for step in soup.trace) / 600
    assert soup.passes["used"] == pytest.approx(8 + seen)
    assert soup.passes["used"] + soup.passes["saved"] == pytest.approx(15)
    assert (soup.passes["saved"] > 1) == early_rejection
    for step in soup.trace:
        assert step.seconds == step.mix_seconds + step.score_seconds
        if step.bound is None:
            assert step.samples == (step.of if step.step or early_rejection else 0)
        else:
            assert not step.accepted
            assert step.bound < soup.score
    content = soup.to_json()
    assert (content["passes"], content["timing"]) == (soup.passes, soup.timing)
    assert set(soup.timing) == {"read", "mix", "score"}
    assert soup.timing["mix"] >= sum(step.mix_seconds for step in soup.trace)
