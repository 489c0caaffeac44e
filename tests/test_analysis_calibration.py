"""Calibration of soups and ensembles as models are added, against plain torch, numpy and scipy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from function_task import Blobs, average, logits_of, pool
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from pysoup.analysis.calibration import KINDS, CalibrationCurve, calibration_curve
from pysoup.analysis.count import count_curve
from pysoup.analysis.sets import Sets
from pysoup.errors import SoupError

COUNT = 4
BINS = 5


@pytest.fixture(scope="module")
def models() -> list[dict[str, Tensor]]:
    return pool(COUNT, steps=100)


@pytest.fixture(scope="module")
def curve(models: list[dict[str, Tensor]]) -> CalibrationCurve:
    return calibration_curve(Sets(Blobs()), models, orders=2, seed=1, bins=BINS)


@pytest.fixture(scope="module")
def betas(models: list[dict[str, Tensor]]) -> list[float]:
    return [fitted(*logits_of(state, data("heldout"))) for state in models]


def data(name: str) -> list[tuple[Tensor, Tensor]]:
    return Blobs().heldout() if name == "heldout" else Blobs().tests()[name]


def fitted(logits: Tensor, labels: Tensor) -> float:
    def loss(log_beta: float) -> float:
        return nn.functional.cross_entropy(np.exp(log_beta) * logits.double(), labels).item()

    return float(np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-7}).x))


def error(logits: Tensor, labels: Tensor) -> float:
    """With bins of equal mass; there are no ties."""
    sure, guess = logits.double().softmax(1).max(1)
    order = sure.argsort()
    cuts = [i * len(sure) // BINS for i in range(BINS + 1)]
    bins = [order[a:b] for a, b in pairwise(cuts)]
    right = (guess == labels).double()
    return sum(len(b) * abs((sure[b].mean() - right[b].mean()).item()) for b in bins) / len(sure)


def plain(states: Sequence[dict[str, Tensor]], betas: list[float], kind: str, name: str) -> tuple[Tensor, Tensor]:
    """The logits of one kind of soup or ensemble, by hand."""
    before, after = "of calibrated" in kind, kind.endswith(", calibrated")
    labels = logits_of(states[0], data(name))[1]

    def made(on: str) -> Tensor:
        if kind.startswith("soup"):
            return logits_of(average(states, betas if before else None), data(on))[0]
        scales = betas if before else [1.0] * len(states)
        return torch.stack([b * logits_of(s, data(on))[0] for b, s in zip(scales, states, strict=True)]).mean(0)

    beta = fitted(made("heldout"), logits_of(states[0], data("heldout"))[1]) if after else 1.0
    return beta * made(name), labels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["heldout", "noisy"])
def test_every_point_is_what_plain_torch_gives(
    models: list[dict[str, Tensor]], betas: list[float], curve: CalibrationCurve, kind: str, name: str
) -> None:
    for n in range(1, COUNT + 1):
        for number, order in enumerate(curve.orders):
            logits, labels = plain([models[i] for i in order[:n]], [betas[i] for i in order[:n]], kind, name)
            found = {measure: sets[name][n - 1].values[number] for measure, sets in curve.curves[kind].items()}
            assert found["accuracy"] == (logits.argmax(1) == labels).double().mean().item()
            assert found["nll"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)
            assert found["ece"] == pytest.approx(error(logits, labels), rel=1e-3, abs=1e-5)


def test_calibrating_afterwards_changes_no_prediction(curve: CalibrationCurve) -> None:
    for kind in ("soup", "ensemble"):
        before, after = curve.curves[kind], curve.curves[f"{kind}, calibrated"]
        assert after["accuracy"] == before["accuracy"]
        for one, other in zip(after["nll"]["heldout"], before["nll"]["heldout"], strict=True):
            assert one.mean <= other.mean  # fitted there


def test_temperatures_are_fitted_on_the_heldout_set_alone(
    models: list[dict[str, Tensor]], betas: list[float], curve: CalibrationCurve
) -> None:
    assert curve.betas == pytest.approx(betas, rel=1e-4)

    class Other(Blobs):
        def tests(self) -> dict[str, list[tuple[Tensor, Tensor]]]:
            return {name: [(x, 3 - y) for x, y in batches] for name, batches in super().tests().items()}

    other = calibration_curve(Sets(Other()), models, orders=2, seed=1, bins=BINS)
    assert other.betas == curve.betas
    assert other.curves["soup, calibrated"]["ece"]["heldout"] == curve.curves["soup, calibrated"]["ece"]["heldout"]


def test_the_reliability_diagram_has_all_samples(curve: CalibrationCurve) -> None:
    for sets in curve.reliability.values():
        for name, count in (("heldout", 120), ("clean", 150)):
            for bins in sets[name].values():
                assert sum(size for *_, size in bins) == count
                assert all(0 <= sure <= 1 and 0 <= right <= 1 for sure, right, _ in bins)


def test_soups_of_calibrated_models_cost_no_pass_of_their_own(models: list[dict[str, Tensor]]) -> None:
    class Counted(Blobs):
        passes = 0

        def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            Counted.passes += 1  # every set is one batch
            return model(batch[0]), batch[1]

    calibration_curve(Sets(Counted()), models, orders=1, bins=BINS)
    assert Counted.passes == 4 * (COUNT + COUNT - 1)


def test_the_counts_of_the_same_run_are_found_there(
    models: list[dict[str, Tensor]], curve: CalibrationCurve, tmp_path: Path
) -> None:
    found = calibration_curve(Sets(Blobs()), models, orders=2, seed=1, bins=BINS, run=tmp_path)
    assert found == curve
    passes = 0

    class Counted(Blobs):
        def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            nonlocal passes
            passes += 1
            return model(batch[0]), batch[1]

    with pytest.raises(SoupError, match="another run is recorded here"):
        count_curve(Sets(Blobs()), models, orders=2, seed=1, run=tmp_path)  # of other bins
    again = calibration_curve(Sets(Blobs()), models, orders=2, seed=1, bins=BINS, run=tmp_path)
    assert again == curve
    assert not passes


def test_a_layer_that_is_not_the_last_is_refused(models: list[dict[str, Tensor]]) -> None:
    for head, message in [
        ("body", "the output of 'body' is not the model's logits"),
        ("tail", "no such layer in the model: found 'tail'"),
        ("", "found Net, expected Linear"),
    ]:
        with pytest.raises(SoupError, match=message):
            calibration_curve(Sets(Blobs()), models, head=head, orders=1)


def test_without_a_last_layer_the_other_curves_are_there(models: list[dict[str, Tensor]]) -> None:
    class Headless(Blobs):
        head = "body.0"

    found = calibration_curve(Sets(Headless()), models, orders=1, bins=BINS)
    assert found.kinds == [kind for kind in KINDS if kind != "soup of calibrated"]
    assert any("is not a linear layer" in note for note in found.notes)


def test_the_curve_is_json_even_where_a_model_has_diverged(models: list[dict[str, Tensor]]) -> None:
    broken = {name: tensor * torch.nan for name, tensor in models[0].items()}
    found = calibration_curve(Sets(Blobs()), [*models[:2], broken], orders=2, bins=BINS)
    known = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert known["betas"][2] is None
    assert known["curves"]["soup"]["ece"]["clean"][2]["mean"] == "nan"
