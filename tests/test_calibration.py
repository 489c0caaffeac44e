"""Calibration error, reliability bins and temperatures against numpy, scikit-learn, scipy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.calibration import calibration_curve
from torch import Tensor

from pysoup import score_logits
from pysoup.errors import SoupError
from pysoup.evaluate import calibration, ece, reliability, temperature


def samples(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    confidence = generator.beta(5, 2, count)
    return confidence, generator.random(count) < confidence**2


def guesses(count: int, classes: int, *, scale: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits, and labels drawn from the softmax of half of them, so that 0.5 is about the right beta."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial((0.5 * logits).softmax(1), 1, generator=generator).squeeze(1)
    return logits, labels


def ece_by_hand(confidence: np.ndarray, correct: np.ndarray, groups: list[np.ndarray]) -> float:
    parts = [len(g) * abs(confidence[g].mean() - correct[g].mean()) for g in groups if len(g)]
    return sum(parts) / len(confidence)


@pytest.mark.parametrize(("count", "bins"), [(1, 15), (7, 15), (150, 15), (151, 10), (1000, 7)])
def test_bins_of_equal_mass_are_slices_of_the_sorted_samples(count: int, bins: int) -> None:
    confidence, correct = samples(count)
    order = np.argsort(confidence)
    groups = [order[i * count // bins : (i + 1) * count // bins] for i in range(bins)]
    expected = ece_by_hand(confidence, correct, groups)
    assert ece(confidence, correct, bins=bins) == pytest.approx(expected, rel=1e-12)
    found = reliability(confidence, correct, bins=bins)
    assert [b.count for b in found] == [len(g) for g in groups if len(g)]
    assert [b.upper for b in found] == [confidence[g].max() for g in groups if len(g)]


@pytest.mark.parametrize(("count", "bins"), [(1, 15), (150, 15), (1000, 10)])
def test_bins_of_equal_width_have_their_upper_edge(count: int, bins: int) -> None:
    confidence, correct = samples(count)
    confidence[: count // 3] = np.round(confidence[: count // 3] * bins) / bins  # on the edges
    confidence[0] = 0.0
    number = np.maximum(np.ceil(np.round(confidence * bins, 9)) - 1, 0)
    groups = [np.flatnonzero(number == i) for i in range(bins)]
    expected = ece_by_hand(confidence, correct, groups)
    assert ece(confidence, correct, bins=bins, equal="width") == pytest.approx(expected, rel=1e-12)
    found = reliability(confidence, correct, bins=bins, equal="width")
    assert [b.count for b in found] == [len(g) for g in groups if len(g)]
    assert [b.upper for b in found] == [(i + 1) / bins for i, g in enumerate(groups) if len(g)]


@pytest.mark.parametrize(("equal", "strategy"), [("width", "uniform"), ("mass", "quantile")])
def test_bins_are_those_of_scikit_learn(equal: str, strategy: str) -> None:
    confidence, correct = samples(1200)  # a multiple of the bins, without ties: there both quantile rules agree
    accuracy, mean = calibration_curve(correct, confidence, n_bins=12, strategy=strategy)
    found = reliability(confidence, correct, bins=12, equal=equal)
    assert [b.accuracy for b in found] == pytest.approx(list(accuracy), rel=1e-12)
    assert [b.confidence for b in found] == pytest.approx(list(mean), rel=1e-12)


def test_equal_confidences_are_never_parted() -> None:
    confidence = np.array([0.5] * 7 + [0.9] * 2 + [0.2])
    correct = np.array([True] * 3 + [False] * 4 + [True, False, False])
    found = reliability(confidence, correct, bins=5)
    assert [(b.lower, b.upper, b.count) for b in found] == [(0.2, 0.5, 8), (0.9, 0.9, 2)]
    assert found[0].accuracy == 3 / 8


@pytest.mark.parametrize("equal", ["mass", "width"])
def test_the_order_of_samples_changes_no_bit(equal: str) -> None:
    confidence, correct = samples(999)
    confidence = np.round(confidence, 2)  # ties
    order = np.random.default_rng(1).permutation(999)
    assert reliability(confidence, correct, equal=equal) == reliability(confidence[order], correct[order], equal=equal)


def test_a_model_that_is_as_right_as_it_is_sure_has_no_error() -> None:
    assert ece(torch.full((10,), 0.7), torch.tensor([True] * 7 + [False] * 3)) == pytest.approx(0.0, abs=1e-7)
    assert ece(torch.ones(5), torch.ones(5).bool()) == 0.0
    assert ece(torch.ones(5), torch.zeros(5).bool()) == 1.0
    assert reliability(torch.ones(5), torch.zeros(5).bool())[0].gap == 1.0


def test_calibration_is_what_the_softmax_says() -> None:
    logits, labels = guesses(500, 6)
    labels[:50] = -1
    found = calibration(logits, labels, beta=0.7, ignore_index=-1)
    p = (0.7 * logits[50:]).softmax(1)
    sure, guess = p.max(1)
    right = guess == labels[50:]
    assert found.accuracy == right.double().mean().item()
    assert found.confidence == pytest.approx(sure.mean().item(), rel=1e-6)
    expected_nll = torch.nn.functional.cross_entropy(0.7 * logits[50:], labels[50:]).item()
    assert found.nll == pytest.approx(expected_nll, rel=1e-6)
    assert found.ece == pytest.approx(ece(sure, right), rel=1e-6)
    assert found.ece_width == pytest.approx(ece(sure, right, equal="width"), rel=1e-6)
    assert sum(b.count for b in found.bins) == 450


def test_the_scores_of_logits_have_what_ece_takes() -> None:
    logits, labels = guesses(300, 4)
    scores = score_logits(logits, labels, k=1, per_sample=("confidence", "correct"))
    assert ece(scores.confidence[0], scores.correct[0]) == calibration(logits, labels).ece


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [0.05, 2.0, 40.0])
def test_the_temperature_is_where_scipy_finds_the_minimum(scale: float, seed: int) -> None:
    logits, labels = guesses(700, 5, seed=seed)
    logits = logits * scale

    def loss(log_beta: float) -> float:
        rows = log_softmax(math.exp(log_beta) * logits.numpy(), axis=1)
        return -float(rows[np.arange(len(labels)), labels.numpy()].mean())

    best = minimize_scalar(loss, bounds=(math.log(1e-4), math.log(1e4)), method="bounded", options={"xatol": 1e-10})
    assert temperature(logits, labels, bounds=(1e-4, 1e4)) == pytest.approx(math.exp(best.x), rel=1e-6)


def test_the_temperature_of_two_classes_is_the_log_odds() -> None:
    # All samples have logits (1, 0), three of four are of class 0: sigmoid(beta) = 3/4.
    logits, labels = torch.tensor([[1.0, 0.0]]).repeat(4, 1), torch.tensor([0, 0, 0, 1])
    assert temperature(logits, labels) == pytest.approx(math.log(3), rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_temperature_scales_with_the_logits(dtype: torch.dtype) -> None:
    logits, labels = guesses(9000, 3)  # more than are taken at a time
    logits = logits.to(dtype)
    assert temperature(4 * logits, labels) == pytest.approx(temperature(logits, labels) / 4, rel=1e-9)
    assert temperature(logits.double() + 64, labels) == pytest.approx(temperature(logits, labels), rel=1e-9)


def test_the_temperature_makes_the_likelihood_no_worse_and_the_predictions_the_same() -> None:
    logits, labels = guesses(800, 5)
    before = calibration(logits, labels)
    after = calibration(logits, labels, beta=temperature(logits, labels))
    assert after.nll < before.nll
    assert after.ece < before.ece
    assert after.accuracy == before.accuracy


def test_a_temperature_without_a_minimum_is_at_its_bound() -> None:
    logits, labels = torch.eye(3), torch.arange(3)
    assert temperature(logits, labels) == 64.0
    assert temperature(logits, labels.roll(1)) == 1 / 64
    assert temperature(logits, labels, bounds=(0.5, 2.0)) == 2.0


def test_ignored_labels_have_no_part_in_the_temperature() -> None:
    logits, labels = guesses(100, 4)
    more = torch.cat([logits, torch.full((5, 4), math.nan, dtype=torch.float64)])
    ignored = torch.cat([labels, torch.full((5,), -100)])
    assert temperature(more, ignored, ignore_index=-100) == temperature(logits, labels)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3).long(), "the logits of every sample are all equal"),
        (torch.zeros(0, 2), torch.zeros(0).long(), "nothing to fit"),
        (torch.tensor([[1.0, 0.0], [math.nan, 0.0]]), torch.zeros(2).long(), "NaN or infinity in row 1"),
        (torch.eye(2), torch.tensor([0, 2]), "a label is not a class: found 2, expected 0 to 1"),
        (torch.eye(2), torch.zeros(3).long(), r"logits torch.float32 \[2, 2\] and labels \[3\]"),
        (torch.eye(2), torch.zeros(2), "labels must be class numbers"),
    ],
)
def test_what_has_no_temperature_is_refused(logits: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(SoupError, match=message):
        temperature(logits, labels)


@pytest.mark.parametrize(
    ("confidence", "correct", "options", "message"),
    [
        ([], torch.zeros(0).bool(), {}, "there are no samples"),
        ([0.5, math.nan], torch.ones(2).bool(), {}, "the confidence of sample 1 is not a probability: found nan"),
        ([0.5, 1.5], torch.ones(2).bool(), {}, "found 1.5, expected 0 to 1"),
        ([0.5], torch.ones(2).bool(), {}, r"torch.float32 \[1\] and torch.bool \[2\]"),
        ([0.5], torch.ones(1), {}, "torch.float32"),
        ([0.5], torch.ones(1).bool(), {"bins": 0}, "bins must be a positive integer"),
        ([0.5], torch.ones(1).bool(), {"equal": "depth"}, "found 'depth'"),
    ],
)
def test_what_has_no_calibration_is_refused(
    confidence: list[float], correct: Tensor, options: dict[str, object], message: str
) -> None:
    with pytest.raises(SoupError, match=message):
        ece(confidence, correct, **options)


def test_bounds_of_a_temperature_must_be_an_interval() -> None:
    with pytest.raises(SoupError, match=r"found 2\.0, 1\.0"):
        temperature(torch.eye(2), torch.arange(2), bounds=(2.0, 1.0))
