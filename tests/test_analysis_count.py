"""Curves over the number of models against plain means of weights and of logits."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from function_task import Blobs, accuracy, average, logits_of, pool
from torch import Tensor, nn

from pysoup.analysis.count import METHODS, CountCurve, count_curve
from pysoup.analysis.orders import MEAN_SHIFT
from pysoup.analysis.sets import Sets
from pysoup.checkpoint import save_state_dict
from pysoup.errors import SoupError

COUNT = 5


@pytest.fixture(scope="module")
def models() -> list[dict[str, Tensor]]:
    return pool(COUNT)


@pytest.fixture(scope="module")
def curve(models: list[dict[str, Tensor]]) -> CountCurve:
    return count_curve(Sets(Blobs()), models, orders=3, seed=2)


def data(name: str) -> list[tuple[Tensor, Tensor]]:
    return Blobs().heldout() if name == "heldout" else Blobs().tests()[name]


def plain(states: Sequence[dict[str, Tensor]], order: Sequence[int], n: int, method: str, name: str) -> float:
    """One point of one order, by hand."""

    def held(state: dict[str, Tensor]) -> float:
        return accuracy(*logits_of(state, data("heldout")))

    members = [states[index] for index in order[:n]]
    if method == "uniform":
        return accuracy(*logits_of(average(members), data(name)))
    if method == "ensemble":
        logits = [logits_of(state, data(name)) for state in members]
        return accuracy(torch.stack([one for one, _ in logits]).mean(0), logits[0][1])
    if method == "best":
        best = max(sorted(order[:n]), key=lambda index: held(states[index]))
        return accuracy(*logits_of(states[best], data(name)))
    kept = members[:1]
    for state in members[1:]:
        if held(average([*kept, state])) >= held(average(kept)):
            kept.append(state)
    return accuracy(*logits_of(average(kept), data(name)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["heldout", "clean", "noisier"])
def test_every_point_is_what_plain_torch_gives(
    models: list[dict[str, Tensor]], curve: CountCurve, method: str, name: str
) -> None:
    for n in range(1, COUNT + 1):
        expected = [plain(models, order, n, method, name) for order in curve.orders]
        point = curve.curves[method][name][n - 1]
        assert (point.n, point.values) == (n, expected)
        assert point.mean == pytest.approx(statistics.fmean(expected))
        assert point.sd == pytest.approx(statistics.stdev(expected))


def test_the_mean_of_the_shifts_leaves_out_the_first_test_set(curve: CountCurve) -> None:
    noisy, noisier, mean = (curve.curves["uniform"][name][2].values for name in ("noisy", "noisier", MEAN_SHIFT))
    assert mean == pytest.approx([(a + b) / 2 for a, b in zip(noisy, noisier, strict=True)])


def test_orders_are_those_of_random_greedy_soups(models: list[dict[str, Tensor]], curve: CountCurve) -> None:
    from pysoup.soups import random_orders

    sets = Sets(Blobs())
    soups = random_orders(models, sets.model, sets.heldout, orders=3, seed=2).soups
    assert [[f"checkpoints[{i}]" for i in kept] for kept in curve.kept] == [soup.ingredients for soup in soups]
    assert [soup.score for soup in soups] == curve.curves["greedy"]["heldout"][-1].values


def test_selection_never_sees_a_test_set(models: list[dict[str, Tensor]], curve: CountCurve) -> None:
    class Other(Blobs):
        def tests(self) -> dict[str, list[tuple[Tensor, Tensor]]]:
            return {name: [(x, 3 - y) for x, y in data] for name, data in super().tests().items()}

    other = count_curve(Sets(Other()), models, orders=3, seed=2)
    assert other.kept == curve.kept
    assert other.curves["greedy"]["heldout"] == curve.curves["greedy"]["heldout"]
    assert other.curves["greedy"]["clean"] != curve.curves["greedy"]["clean"]


def test_each_number_of_models_costs_one_pass(models: list[dict[str, Tensor]]) -> None:
    class Counted(Blobs):
        passes = 0

        def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            Counted.passes += 1  # every set is one batch
            return model(batch[0]), batch[1]

        def train(self) -> list[tuple[Tensor, Tensor]]:
            return self.heldout()

    curve = count_curve(Sets(Counted(), train=0), models, orders=1)  # which has no part in it
    greedy = len(curve.kept[0]) - 1
    tried = COUNT - 1
    least = 4 * COUNT + 4 * tried  # single models, uniform soups: four sets each
    assert least <= Counted.passes <= least + tried + 3 * greedy


def test_a_run_that_was_stopped_goes_on_to_the_same_curve(
    models: list[dict[str, Tensor]], curve: CountCurve, tmp_path: Path
) -> None:
    class Stopped(Blobs):
        left = 0

        def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            if not Stopped.left:
                raise KeyboardInterrupt
            Stopped.left -= 1
            return model(batch[0]), batch[1]

    starts = 0
    while True:
        starts += 1
        Stopped.left = 17
        try:
            found = count_curve(Sets(Stopped()), models, orders=3, seed=2, run=tmp_path / "run")
            break
        except KeyboardInterrupt:
            assert starts < 50
    assert starts > 3
    assert found == curve


def test_files_and_state_dicts_give_one_curve(
    models: list[dict[str, Tensor]], curve: CountCurve, tmp_path: Path
) -> None:
    for number, state in enumerate(models):
        save_state_dict(state, tmp_path / f"{number}.safetensors")
    found = count_curve(Sets(Blobs()), tmp_path, orders=3, seed=2, logit_memory=1)
    assert found.curves == curve.curves


def test_the_curve_is_json_even_where_a_model_has_diverged(models: list[dict[str, Tensor]]) -> None:
    broken = {name: tensor * torch.nan for name, tensor in models[0].items()}
    found = count_curve(Sets(Blobs()), [*models[:2], broken], metric="nll", orders=2)
    text = json.dumps(found.to_json(), allow_nan=False)
    assert json.loads(text)["curves"]["uniform"]["clean"][2]["mean"] == "nan"
    assert found.curves["best"]["clean"][2].mean > 0


def test_orders_must_be_at_least_one(models: list[dict[str, Tensor]]) -> None:
    with pytest.raises(SoupError, match="orders is too small"):
        count_curve(Sets(Blobs()), models, orders=0)
