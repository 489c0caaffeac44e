"""What logits are worth on a set: the metric, the likelihood and the calibration, as they are and scaled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from ..errors import SoupError
from ..evaluate import Bin, Metric, temperature
from ..evaluate.calibration import BINS, calibration

Logits = Mapping[str, tuple[Tensor, Tensor]]
"""By set: logits ``[N, C]`` and labels ``[N]``, on the CPU."""
Plain = dict[str, Any]


@dataclass(frozen=True)
class Calibrated:
    """Likelihood (nats per sample) and calibration error with bins of equal mass and equal width."""

    nll: float
    ece: float
    ece_width: float
    bins: tuple[Bin, ...] = ()
    """Of equal mass; empty where they were not asked for."""


@dataclass(frozen=True)
class Worth:
    """Of one model or ensemble on one set."""

    score: float
    """By the analysis' metric."""
    accuracy: float | None
    """``None``, as the two below, where the output is not finite logits ``[N, C]`` with class numbers."""
    plain: Calibrated | None
    scaled: Calibrated | None
    """At the temperature fitted on the held-out set; the accuracy is the same there."""

    def to_json(self) -> Plain:
        return asdict(self)


@dataclass(frozen=True)
class Described:
    """Of one model or ensemble: the temperature, fitted on the held-out set, and its worth on each set."""

    beta: float | None
    """``None`` where there is none: outputs that are not logits, not finite, or all equal."""
    sets: dict[str, Worth]

    def to_json(self) -> Plain:
        return {"beta": self.beta, "sets": {name: worth.to_json() for name, worth in self.sets.items()}}

    def without_bins(self) -> Described:
        return replace(self, sets={name: _without_bins(worth) for name, worth in self.sets.items()})

    @staticmethod
    def from_json(plain: Plain) -> Described:
        return Described(plain["beta"], {name: _worth(one) for name, one in plain["sets"].items()})


def describe(logits: Logits, metric: Metric, heldout: str, *, bins: int = BINS) -> Described:
    """Score logits on all sets; the temperature is fitted on the one called ``heldout``, and on no other."""
    try:
        beta = temperature(*logits[heldout], ignore_index=_ignored(metric))
    except SoupError:  # no logits of classes: the metric may know what to do with them
        beta = None
    return Described(beta, {name: _describe(*pair, metric, beta, bins) for name, pair in logits.items()})


def score_of(logits: Tensor, labels: Tensor, metric: Metric) -> float:
    """By the metric alone."""
    accumulator = metric.accumulator()
    accumulator.update(logits, labels)
    return accumulator.value()


def _describe(logits: Tensor, labels: Tensor, metric: Metric, beta: float | None, bins: int) -> Worth:
    score, ignored = score_of(logits, labels, metric), _ignored(metric)
    try:
        plain = calibration(logits, labels, bins=bins, ignore_index=ignored)
        scaled = None if beta is None else calibration(logits, labels, beta=beta, bins=bins, ignore_index=ignored)
    except SoupError:
        return Worth(score, None, None, None)
    found = [None if c is None else Calibrated(c.nll, c.ece, c.ece_width, tuple(c.bins)) for c in (plain, scaled)]
    return Worth(score, plain.accuracy, *found)


def _ignored(metric: Metric) -> int | None:
    """What is padding for the metric is padding here."""
    found: int | None = getattr(metric.accumulator(), "ignore_index", None)
    return found


def _without_bins(worth: Worth) -> Worth:
    plain, scaled = (None if c is None else replace(c, bins=()) for c in (worth.plain, worth.scaled))
    return replace(worth, plain=plain, scaled=scaled)


def _worth(plain: Plain) -> Worth:
    calibrated = [
        None if one is None else Calibrated(**{**one, "bins": tuple(Bin(**b) for b in one["bins"])})
        for one in (plain["plain"], plain["scaled"])
    ]
    return Worth(plain["score"], plain["accuracy"], *calibrated)
