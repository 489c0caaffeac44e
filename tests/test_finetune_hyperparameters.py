"""The laws of the random search: ranges, probabilities, determinism."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pysoup.errors import SoupError
from pysoup.finetune import PAPER, PAPER_TEXT, Hyperparameters, Ranges, sample_hyperparameters


@pytest.fixture(scope="module")
def many() -> list[Hyperparameters]:
    return sample_hyperparameters(4000, seed=3)


def test_paper_ranges_hold_and_are_filled(many: list[Hyperparameters]) -> None:
    ranges = {
        "learning_rate": (1e-6, 1e-4),
        "weight_decay": (1e-4, 10**-0.2),
        "epochs": (4, 16),
        "label_smoothing": (0.0, 0.25),
        "mixup": (0.0, 0.9),
        "augment_ops": (0, 2),
        "augment_magnitude": (0, 20),
    }
    for name, (low, high) in ranges.items():
        values = [getattr(hp, name) for hp in many]
        assert low <= min(values) <= low + 0.02 * (high - low), name
        assert high - 0.02 * (high - low) <= max(values) <= high, name


def test_learning_rate_is_uniform_in_its_logarithm(many: list[Hyperparameters]) -> None:
    exponents = [math.log10(hp.learning_rate) for hp in many]
    quarters = [sum(low <= u < low + 0.5 for u in exponents) / len(many) for low in (-6.0, -5.5, -5.0, -4.5)]
    assert all(abs(share - 0.25) < 0.03 for share in quarters)


def test_regularisers_are_off_as_often_as_the_paper_says(many: list[Hyperparameters]) -> None:
    def share(name: str) -> float:
        return sum(getattr(hp, name) == 0 for hp in many) / len(many)

    assert abs(share("label_smoothing") - 1 / 2) < 0.03
    assert abs(share("mixup") - 1 / 2) < 0.03
    # N is 0 where the augmentation is minimal, and in one of the three values it is drawn from elsewhere.
    assert abs(share("augment_ops") - (1 / 3 + 2 / 3 * 1 / 3)) < 0.03


def test_same_seed_gives_the_same_points_and_a_longer_search_starts_with_a_shorter() -> None:
    assert sample_hyperparameters(5, seed=1) == sample_hyperparameters(9, seed=1)[:5]
    assert sample_hyperparameters(5, seed=1) != sample_hyperparameters(5, seed=2)


def test_points_have_training_seeds_of_their_own(many: list[Hyperparameters]) -> None:
    assert len({hp.seed for hp in many}) == len(many)


def test_narrowed_range_leaves_the_other_draws_alone() -> None:
    narrow = Ranges(log10_learning_rate=(-3.0, -2.5), no_mixup=1.0)
    for wide, point in zip(sample_hyperparameters(50, 7), sample_hyperparameters(50, 7, narrow), strict=True):
        assert 1e-3 <= point.learning_rate <= 10**-2.5
        assert point.mixup == 0.0
        assert (point.weight_decay, point.epochs, point.label_smoothing, point.seed) == (
            wide.weight_decay,
            wide.epochs,
            wide.label_smoothing,
            wide.seed,
        )


def test_schedule_is_the_papers_unless_asked_and_asking_leaves_the_other_draws_alone() -> None:
    plain = sample_hyperparameters(50, 7)
    drawn = sample_hyperparameters(50, 7, Ranges(final_share=(0.2, 1.0)))
    assert all(point.final_share == 0.0 for point in plain)
    assert 0.2 <= min(point.final_share for point in drawn) < 0.3
    assert 0.9 < max(point.final_share for point in drawn) <= 1.0
    assert [replace(point, final_share=0.0) for point in drawn] == plain


def test_json_reads_back_equal() -> None:
    for hp in sample_hyperparameters(10):
        assert Hyperparameters(**hp.to_json()) == hp


def test_json_of_before_a_field_existed_reads_with_its_default() -> None:
    hp = Hyperparameters(learning_rate=0.1, seed=3)
    old = {key: value for key, value in hp.to_json().items() if key not in ("schedule", "warmup", "batch_size")}
    assert Hyperparameters.from_json(old) == hp


@pytest.mark.parametrize("content", [{"learning_rate": 0.1, "momentum": 0.9}, {"epochs": 3}, {"learning_rate": "fast"}])
def test_json_of_something_else_is_refused(content: dict[str, object]) -> None:
    with pytest.raises(SoupError, match="no hyperparameters"):
        Hyperparameters.from_json(content)


def test_batch_size_is_chosen_evenly_and_leaves_the_other_draws_alone() -> None:
    sizes = (8, 16, 32, 64)
    drawn = sample_hyperparameters(2000, 3, Ranges(batch_size=sizes))
    for size in sizes:
        assert abs(sum(hp.batch_size == size for hp in drawn) / 2000 - 1 / 4) < 0.03
    assert [replace(hp, batch_size=64) for hp in drawn] == sample_hyperparameters(2000, 3)


def test_text_laws_are_the_papers() -> None:
    drawn = sample_hyperparameters(2000, 3, PAPER_TEXT)
    assert {hp.epochs for hp in drawn} == {2, 3, 4, 5}
    assert {hp.batch_size for hp in drawn} == {8, 16, 32, 64}
    assert {(hp.weight_decay, hp.label_smoothing, hp.mixup, hp.augment_ops) for hp in drawn} == {(0.0, 0.0, 0.0, 0)}
    exponents = [math.log10(hp.learning_rate) for hp in drawn]
    assert -6 <= min(exponents) < -5.95
    assert -3.05 < max(exponents) <= -3


def test_paper_preset_is_the_default() -> None:
    assert sample_hyperparameters(3) == sample_hyperparameters(3, 0, PAPER)


@pytest.mark.parametrize(
    "field",
    [
        {"learning_rate": math.nan},
        {"mixup": -0.1},
        {"label_smoothing": 1.5},
        {"epochs": 0},
        {"augment_ops": -1},
        {"final_share": 1.1},
        {"warmup": -0.1},
        {"batch_size": 0},
        {"clip_norm": math.inf},
        {"schedule": "sine"},
    ],
)
def test_impossible_points_are_refused(field: dict[str, float]) -> None:
    with pytest.raises(SoupError):
        Hyperparameters(**{"learning_rate": 1e-3, **field})  # type: ignore[arg-type]


def test_impossible_laws_are_refused() -> None:
    with pytest.raises(SoupError, match="epochs is empty"):
        Ranges(epochs=(5, 4))
    with pytest.raises(SoupError, match="no_mixup is a probability"):
        Ranges(no_mixup=1.5)
    with pytest.raises(SoupError, match="batch_size is a list"):
        Ranges(batch_size=())
    with pytest.raises(SoupError, match="at least one"):
        sample_hyperparameters(0)


@pytest.mark.parametrize("name", ["log10_learning_rate", "log10_weight_decay"])
def test_rates_in_place_of_their_exponents_are_refused_with_these(name: str) -> None:
    with pytest.raises(SoupError) as caught:
        Ranges(**{name: (1e-5, 1e-3)})
    assert str(caught.value) == (
        f"{name} is a range of exponents of 10: found (1e-05, 0.001), expected (-5, -3), if 1e-05 to 0.001 is meant"
    )
    for low, high in ((0.0, 0.1), (0.5, 2.0)):
        with pytest.raises(SoupError, match=r"exponents of 10: .* expected such as \(-5, -3\), for 1e-05 to 0.001"):
            Ranges(**{name: (low, high)})
    for pair in ((-3.0, 0.0), (-3.0, 0.5), (0.0, 0.0)):
        assert getattr(Ranges(**{name: pair}), name) == pair
