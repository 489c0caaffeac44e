"""The recorded experiments on a tiny task: ingredients, all methods, and tables, against plain torch and arithmetic."""

from __future__ import annotations

import copy
import math
import statistics
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pysoup.errors import SoupError
from pysoup.task import load_task

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
sys.path.append(str(Path(__file__).parent.parent / "benchmarks" / "experiments"))

import soups as methods
import table
from pool import Pool
from training import seeded_plan, train

INGREDIENTS = 5
TASK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)))


def samples(seed, count, noise=1.3):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.eye(3).repeat(1, 2) * 2
    return centres[labels] + noise * torch.randn(count, 6, generator=generator), labels


class Small:
    head = "head"

    def model(self):
        torch.manual_seed(0)
        return Net()

    def train(self):
        return samples(1, 60)

    def heldout(self):
        return samples(2, 240)

    def tests(self):
        return {"plain": samples(3, 150), "noisy": samples(4, 90, 2.0), "noisier": samples(5, 90, 3.0)}


small = Small()
"""
SWEEP = """
task = "small_task.py:small"
seed = 0

[start]
learning_rate = 1e-2
epochs = 2

[training]
batch_size = 10

[random]
runs = 5
log10_learning_rate = [-2.0, -1.0]
epochs = [2, 3]
minimal_augmentation = 1.0
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiment")
    (folder / "small_task.py").write_text(TASK)
    (folder / "sweep_small.toml").write_text(SWEEP)
    return folder / "sweep_small.toml"


@pytest.fixture(scope="module")
def folder(sweep: Path) -> Path:
    made = sweep.parent / "seed7"
    train(sweep, 7, made, jobs=1)
    return made


@pytest.fixture(scope="module")
def pool(sweep: Path, folder: Path) -> Pool:
    return Pool(load_task(f"{sweep.parent / 'small_task.py'}:small"), folder, INGREDIENTS)


@pytest.fixture(scope="module")
def found(pool: Pool) -> dict[str, Any]:
    return methods.compare(pool)


class Oracle:
    """The same in plain torch: averages in f64, accuracy by argmax."""

    def __init__(self, pool: Pool, folder: Path) -> None:
        self.task = load_task(f"{folder.parent / 'small_task.py'}:small")
        self.states = [load_file(folder / f"model_{index:02d}.safetensors") for index in range(INGREDIENTS)]
        self.tests: dict[str, tuple[Tensor, Tensor]] = self.task.tests()  # type: ignore[attr-defined]
        self.heldout: tuple[Tensor, Tensor] = self.task.heldout()

    def logits(self, members: Sequence[int], inputs: Tensor) -> Tensor:
        model = self.task.model()
        names = self.states[0]
        means = {n: torch.stack([self.states[i][n].double() for i in members]).mean(0).float() for n in names}
        model.load_state_dict(means)
        with torch.no_grad():
            return model(inputs)

    def right(self, members: Sequence[int], data: tuple[Tensor, Tensor]) -> Tensor:
        return self.logits(members, data[0]).argmax(1) == data[1]

    def accuracy(self, members: Sequence[int], data: tuple[Tensor, Tensor]) -> float:
        return self.right(members, data).double().mean().item()


@pytest.fixture(scope="module")
def oracle(pool: Pool, folder: Path) -> Oracle:
    return Oracle(pool, folder)


def agrees(row: dict[str, Any], oracle: Oracle, members: Sequence[int]) -> None:
    assert row["test"] == pytest.approx(oracle.accuracy(members, oracle.tests["plain"]))
    shifts = [oracle.accuracy(members, oracle.tests[name]) for name in ("noisy", "noisier")]
    assert list(row["shifts"].values()) == pytest.approx(shifts)
    assert row["mean_shift"] == pytest.approx(sum(shifts) / 2)


def test_seeded_plan_differs_in_its_points_alone(sweep: Path, tmp_path: Path) -> None:
    first, again, other = (seeded_plan(sweep, seed, tmp_path / str(seed)) for seed in (1, 1, 2))
    assert first.points == again.points != other.points
    assert len(other.points) == INGREDIENTS
    assert (first.seed, other.seed) == (1, 2)
    assert first.task == other.task == f"{sweep.parent / 'small_task.py'}:small"


def test_seeded_plan_of_a_file_without_a_seed_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(SWEEP.replace("seed = 0\n", ""))
    with pytest.raises(SoupError, match="needs one line with its seed") as caught:
        seeded_plan(file, 1, tmp_path)
    assert "\n" not in str(caught.value)


def test_training_makes_every_ingredient_once(sweep: Path, folder: Path) -> None:
    paths = sorted(folder.glob("model_*.safetensors"))
    assert [path.name for path in paths] == [f"model_{index:02d}.safetensors" for index in range(INGREDIENTS)]
    before = [path.stat().st_mtime_ns for path in paths]
    train(sweep, 7, folder, jobs=1)
    assert [path.stat().st_mtime_ns for path in paths] == before


def test_pool_names_the_ingredient_that_is_missing(sweep: Path, folder: Path) -> None:
    with pytest.raises(SoupError, match="ingredient 5 of 6 is not there yet: --stage train") as caught:
        Pool(load_task(f"{sweep.parent / 'small_task.py'}:small"), folder, INGREDIENTS + 1)
    assert "\n" not in str(caught.value)


def test_best_and_second_are_those_of_the_held_out_set(found: dict[str, Any], oracle: Oracle) -> None:
    scores = [oracle.accuracy([index], oracle.heldout) for index in range(INGREDIENTS)]
    ranking = sorted(range(INGREDIENTS), key=lambda index: -scores[index])
    for name, index in zip(("best", "second"), ranking, strict=False):
        row = found["methods"][name]
        assert row["ingredients"] == [index]
        assert row["heldout"] == pytest.approx(scores[index])
        agrees(row, oracle, [index])
    assert [model["heldout"] for model in found["models"]] == pytest.approx(scores)


@pytest.mark.parametrize("name", ["uniform", "greedy", "pruned"])
def test_soups_score_as_the_average_of_their_ingredients(name: str, found: dict[str, Any], oracle: Oracle) -> None:
    row = found["methods"][name]
    assert row["heldout"] == pytest.approx(oracle.accuracy(row["ingredients"], oracle.heldout))
    agrees(row, oracle, row["ingredients"])


def test_greedy_takes_what_the_plain_recipe_takes(found: dict[str, Any], oracle: Oracle) -> None:
    scores = [oracle.accuracy([index], oracle.heldout) for index in range(INGREDIENTS)]
    kept: list[int] = []
    best = -math.inf
    for index in sorted(range(INGREDIENTS), key=lambda index: -scores[index]):
        score = oracle.accuracy([*kept, index], oracle.heldout)
        if score >= best:
            kept, best = [*kept, index], score
    assert found["methods"]["greedy"]["ingredients"] == kept
    assert found["methods"]["uniform"]["ingredients"] == list(range(INGREDIENTS))


def test_ensembles_average_logits(found: dict[str, Any], oracle: Oracle) -> None:
    inputs, labels = oracle.tests["plain"]
    for name in ("ensemble", "greedy_ensemble"):
        row = found["methods"][name]
        mean = torch.stack([oracle.logits([index], inputs) for index in row["ingredients"]]).mean(0)
        assert row["test"] == pytest.approx((mean.argmax(1) == labels).double().mean().item())
    assert found["methods"]["ensemble"]["ingredients"] == list(range(INGREDIENTS))


def test_mcnemar_is_against_the_best_model(found: dict[str, Any], oracle: Oracle) -> None:
    data = oracle.tests["plain"]
    a, b = oracle.right(range(INGREDIENTS), data), oracle.right(found["methods"]["best"]["ingredients"], data)
    only = int((a & ~b).sum()), int((b & ~a).sum())
    coins = sum(only)
    tail = Fraction(2 * sum(math.comb(coins, heads) for heads in range(min(only) + 1)), 2**coins)
    row = found["methods"]["uniform"]["mcnemar"]
    assert (row["only_this"], row["only_best"]) == only
    assert row["p_value"] == pytest.approx(float(min(tail, Fraction(1))))
    assert "mcnemar" not in found["methods"]["best"]


def test_random_orders_are_three_soups(found: dict[str, Any], oracle: Oracle) -> None:
    assert len(found["random_orders"]) == 3
    for row in found["random_orders"]:
        agrees(row, oracle, row["ingredients"])


def test_logits_are_kept_for_these_weights_only(
    found: dict[str, Any], pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(pool, "load", refused)
    assert set(pool.logits(0)) == {"plain", "noisy", "noisier"}
    other = copy.deepcopy(pool.ingredients)
    object.__setattr__(other[0].record, "weights", "of another model")
    monkeypatch.setattr(pool, "ingredients", other)
    with pytest.raises(AssertionError, match="computed again"):
        pool.logits(0)


def step(samples: int, before: float | None, *, accepted: bool, mix: float = 0.0, score: float = 0.0) -> Any:
    return SimpleNamespace(
        samples=samples, of=100, accepted=accepted, best_score_before=before, mix_seconds=mix, score_seconds=score
    )


def test_early_rejection_is_measured_on_the_refused_alone() -> None:
    trace = [
        step(100, None, accepted=True),
        step(30, 0.8, accepted=False),
        step(100, 0.8, accepted=True),
        step(40, 0.9, accepted=False),
    ]
    report = methods._rejection(SimpleNamespace(trace=trace, passes={"used": 2.7, "saved": 1.3}))
    assert (report["refused"], report["largest_share"]) == (2, 0.4)
    assert report["mean_share"] == pytest.approx(0.35)
    assert report["limit"] == pytest.approx(0.15 + 0.08)
    assert report["met"] is False
    nothing = methods._rejection(SimpleNamespace(trace=trace[:1], passes={"used": 1.0, "saved": 0.0}))
    assert nothing == {"refused": 0, "passes": {"used": 1.0, "saved": 0.0}}


def test_mixing_is_compared_with_a_full_pass() -> None:
    trace = [step(100, None, accepted=True, mix=0.1, score=4.0), step(25, 0.8, accepted=False, mix=0.3, score=1.0)]
    cost = methods._cost(SimpleNamespace(trace=trace, timing={"read": 0.0, "mix": 0.4, "score": 5.0}))
    assert cost["full_pass"] == pytest.approx(4.0)
    assert cost["share"] == pytest.approx(0.05)


def row(test: float, shift: float, ingredients: int = 1) -> dict[str, Any]:
    return {
        "heldout": 0.5,
        "test": test,
        "mean_shift": shift,
        "shifts": {"noise": shift},
        "ingredients": list(range(ingredients)),
        "mcnemar": {"only_this": 3, "only_best": 1, "p_value": 0.625},
        "seconds": 60.0,
    }


def report(*seeds: tuple[int, float, float]) -> dict[str, Any]:
    """(seed, test accuracy of the best model, of the greedy soup)"""
    rejection = {"refused": 4, "mean_share": 0.25, "largest_share": 0.5, "limit": 0.28, "met": True}
    rejection["passes"] = {"used": 7.5, "saved": 4.25}
    runs = [
        {
            "seed": seed,
            "methods": {name: row(0.25, 0.125) for name in table.METHODS if name != "random"}
            | {"best": row(best, 0.25), "greedy": row(greedy, 0.5, seed)},
            "random_orders": [row(0.5, 0.25), row(0.75, 0.25), row(0.25, 0.25)],
            "start": row(0.125, 0.125),
            "models": [row(0.5, 0.25), row(0.25, 0.25)],
            "early_rejection": {"recorded scores": rejection, "measured scores": {**rejection, "met": False}},
            "cost": {
                "seconds": {"read": 1.0, "mix": 0.5, "score": 20.0},
                "mix": 0.025,
                "full_pass": 2.0,
                "share": 0.0125,
                "met": True,
            },
        }
        for seed, best, greedy in seeds
    ]
    machine = {
        "cpu": "A processor",
        "cores": 2,
        "memory_gib": 8,
        "date": "2024-05-06",
        "commit": "abc",
        "load_before": 0,
    }
    return {
        "machine": machine,
        "torch": "2",
        "isa": "AVX2",
        "data": {"sha256": "f" * 64},
        "test": "lines",
        "runs": runs,
    }


def cells(text: str, first: str) -> list[list[str]]:
    lines = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return [line for line in lines if line[0] == first]


def test_table_has_means_and_spreads_over_seeds() -> None:
    text = table.block(report((3, 0.5, 0.75), (5, 0.75, 0.75)))
    scores, differences = cells(text, "Greedy soup")
    spread = 100 * statistics.stdev([0.5, 0.75])
    assert scores[2:4] == ["75.00 ± 0.00", "50.00 ± 0.00"]
    assert scores[-1] == "4.0"
    assert differences[1:] == [f"+12.50 ± {spread:.2f}", "+25.00 ± 0.00", "1 of 2", "0.62, 0.62"]
    assert cells(text, "Best individual model")[0][2] == f"62.50 ± {spread:.2f}"
    assert cells(text, "Greedy soup (random order)")[0][2] == "50.00 ± 0.00"
    assert "standard deviation within a seed is 25.00 on lines and 0.00 over the shifts" in " ".join(text.split())
    assert cells(text, "All models, mean")[0][2] == "37.50 ± 0.00"


def test_table_says_what_was_asked_and_met() -> None:
    text = table.block(report((3, 0.5, 0.75)))
    assert cells(text, "Greedy soup")[0][2] == "75.00"
    each, recorded, measured, time = cells(text, "3")
    assert each[1] == "50.00 / 25.00"
    assert recorded[2:] == ["4", "0.250", "0.500", "0.280", "yes", "7.50", "4.25"]
    assert measured[6] == "no"
    assert time[1:8] == ["1.00 s", "0.50 s", "20.00 s", "25.0 ms", "2.00 s", "1.25%", "yes"]
    assert time[8:] == ["60 s, 60 s", "120 s"]


def test_tables_go_between_their_markers_only(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- one -->\nold\n<!-- /one -->\nb\n<!-- two -->\nkept\n<!-- /two -->\n")
    table.insert(page, "one", "new \\1")
    assert page.read_text() == "a\n<!-- one -->\n\nnew \\1\n\n<!-- /one -->\nb\n<!-- two -->\nkept\n<!-- /two -->\n"
    with pytest.raises(SystemExit, match="no markers for three"):
        table.insert(page, "three", "new")
