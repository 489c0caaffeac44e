"""Greedy soups in random orders, each the one that its seed gives by itself."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch
from soup_models import images, mlp, pool, same_bits
from torch import Tensor, nn

from pysoup import HeldOut, SoupError, greedy_soup
from pysoup.soups import random_orders


def test_each_order_is_that_of_its_seed_and_the_statistics_are_theirs() -> None:
    states = pool(mlp(), 6, spread=0.3)
    held = HeldOut(images(), batch_size=32)
    found = random_orders(states, mlp(), held, orders=4, seed=7, accept=">")
    assert len(found.soups) == 4
    for number, soup in enumerate(found.soups):
        alone = greedy_soup(states, mlp(), held, order="random", seed=7 + number, accept=">")
        assert soup.ingredients == alone.ingredients
        assert found.scores[number] == soup.score == alone.score
        assert same_bits(soup.state_dict(), alone.state_dict())
    assert len({tuple(step.index for step in soup.trace) for soup in found.soups}) > 1
    assert found.mean == pytest.approx(sum(found.scores) / 4, rel=1e-15)
    assert found.sd == pytest.approx(statistics.stdev(found.scores), rel=1e-15)
    assert found.sd is not None
    assert found.sd > 0


def test_one_order_has_no_deviation() -> None:
    found = random_orders(pool(mlp(), 3, spread=0.3), mlp(), images(), "nll", orders=1)
    assert found.sd is None
    assert found.mean == found.scores[0]


def test_single_models_are_not_scored_and_data_is_read_once() -> None:
    states = pool(mlp(), 5, spread=0.3)
    scored: list[bytes] = []
    reads = [0]

    def batches() -> object:
        reads[0] += 1
        yield images()

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        scored.append(model.state_dict()["0.weight"].numpy().tobytes())
        return model(batch[0]), batch[1]

    progress: list[tuple[int, int, str]] = []
    found = random_orders(
        states,
        mlp(),
        HeldOut(batches(), forward),
        orders=2,
        max_ingredients=2,
        early_rejection=False,
        progress=lambda *told: progress.append(told),
    )
    singles = {state["0.weight"].numpy().tobytes() for state in states}
    assert sum(weights in singles for weights in scored) == 2  # the first of each order
    assert reads == [1]
    assert [len(soup.ingredients) for soup in found.soups] == [2, 2]
    assert [done for done, _, _ in progress] == sorted(done for done, _, _ in progress)
    assert progress[0][2].startswith("order 1, ")


def test_a_run_directory_has_one_for_each_order(tmp_path: Path) -> None:
    states = pool(mlp(), 4, spread=0.3)
    left = [0]

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return model(batch[0]), batch[1]

    held = HeldOut(images(), forward, batch_size=60)
    left[0] = 10
    with pytest.raises(KeyboardInterrupt):
        random_orders(states, mlp(), held, seed=3, early_rejection=False, run=tmp_path / "run")
    left[0] = 1000
    found = random_orders(states, mlp(), held, seed=3, early_rejection=False, run=tmp_path / "run")
    assert left[0] == 1000 - (3 * 4 * 2 - 10)  # five scores of two batches each were done
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["order-3", "order-4", "order-5"]
    assert found.scores == random_orders(states, mlp(), held, seed=3, early_rejection=False).scores


@pytest.mark.parametrize(
    ("options", "word"), [({"orders": 0}, "orders"), ({"seed": 0.5}, "seed"), ({"accept": "="}, "accept")]
)
def test_wrong_options_are_refused(options: dict[str, object], word: str) -> None:
    with pytest.raises(SoupError, match=word):
        random_orders(pool(mlp(), 2, spread=0.3), mlp(), images(), **options)


def test_the_model_holds_the_last_soup() -> None:
    model = mlp()
    found = random_orders(pool(model, 4, spread=0.3), model, images(), orders=2)
    assert same_bits(dict(model.state_dict()), found.soups[-1].state_dict())
    assert isinstance(model[0], torch.nn.Linear)
