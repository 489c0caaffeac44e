"""Weighted averages of one pool, each written into the live model and scored: interpolations, and trajectories."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..errors import SoupError
from ..evaluate import (
    Accumulator,
    Forward,
    HeldOut,
    Metric,
    as_heldout,
    as_metric,
    default_forward,
    recalibrate_batchnorm,
    run_evaluation,
)
from ..load import average_into
from ..progress import StepProgress
from .candidates import Candidate, names_of, naming, read_heldout
from .journal import Journal
from .soup import finite

HELDOUT = "heldout"
"""What the held-out set is called among several."""


@dataclass(frozen=True)
class Point:
    """One average: its ``weights``, as they were given, and what it scored.

    ``score`` is the mean of ``scores``, which has every held-out set by name. ``loss`` is the mean cross-entropy, in
    nats, over the same sets; None where the metric is not one of classification. ``tests`` has the scores of test sets,
    which select nothing. ``nonfinite`` names tensors with NaN or infinities.
    """

    weights: tuple[float, ...]
    score: float
    scores: dict[str, float]
    loss: float | None = None
    tests: dict[str, float] = field(default_factory=dict)
    nonfinite: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "weights": list(self.weights),
            "score": finite(self.score),
            "scores": {name: finite(value) for name, value in self.scores.items()},
            "loss": finite(self.loss),
            "tests": {name: finite(value) for name, value in self.tests.items()},
        }


class WeightedScorer:
    """Scores averages of ``candidates`` with any weights, on ``heldout`` and the sets ``also``; ``tests`` for reports.

    Each is one fused pass over the ingredients of weight other than 0. With ``training`` data, BatchNorm statistics are
    estimated anew before it is scored; its batches are applied as those of ``heldout``. ``journal``, which may be set
    at any time, keeps what was scored.
    """

    def __init__(
        self,
        model: nn.Module,
        candidates: Sequence[Candidate],
        heldout: HeldOut | Any | None,
        metric: Metric,
        *,
        also: Mapping[str, HeldOut | Any] | None = None,
        tests: Mapping[str, HeldOut | Any] | None = None,
        training: Any = None,
        integers: str = "auto",
        progress: StepProgress | None = None,
        evaluations: int = 0,
    ) -> None:
        self.model = model
        self.candidates = list(candidates)
        self.metric = metric
        if HELDOUT in (also or {}):
            raise SoupError("one of the further held-out sets needs another name", found=repr(HELDOUT))
        self.sets = {} if heldout is None else {HELDOUT: as_heldout(heldout)}
        self.sets |= {str(name): as_heldout(data) for name, data in (also or {}).items()}
        self.tests = {str(name): as_heldout(data) for name, data in (tests or {}).items()}
        self.training = training
        self.timing = {"read": 0.0, "mix": 0.0, "score": 0.0}
        self.passes = 0
        """Over the held-out sets, counted apart."""
        self.journal: Journal | None = None
        self._integers = integers
        self._progress = progress
        self._evaluations = evaluations
        self._done = 0
        for data in self.sets.values():
            read_heldout(data)

    def write(self, weights: Sequence[float], name: str) -> tuple[str, ...]:
        """The model holds the average with these weights, which are normalised; its tensors that are not finite."""
        started = time.perf_counter()
        sources = [(candidate.name, candidate.source) for candidate in self.candidates]
        with naming(f"loading {name}", "the model may hold part of it", file=True):
            found = average_into(self.model, sources, weights, **names_of(self.candidates), integers=self._integers)
        if self.training is not None:
            with naming(f"estimating the BatchNorm statistics of {name}", "the model holds it"):
                recalibrate_batchnorm(self.model, self.training, self._training_forward())
        self.timing["mix"] += time.perf_counter() - started
        return tuple(found)

    def _training_forward(self) -> Forward | None:
        """Training data is applied as held-out data is, as in :class:`pysoup.Sweep`, unless it brings its own way."""
        heldout = self.sets.get(HELDOUT)
        if heldout is None or heldout.forward is default_forward or isinstance(self.training, HeldOut):
            return None
        return heldout.forward

    def score(self, weights: Sequence[float], name: str) -> Point:
        """The average with these weights, scored on all sets; recalled where the journal knows all of it."""
        key = f"weights:{','.join(map(repr, weights))}"
        known = None if self.journal is None else self.journal.recall(key)
        if known is None or not self.tests.keys() <= known["tests"].keys():
            known = self._measured(weights, name)
            if self.journal is not None:
                self.journal.record(key, known)
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, max(self._evaluations, self._done), name)
        losses = list(known["losses"].values())
        return Point(
            tuple(weights),
            math.fsum(known["scores"].values()) / len(known["scores"]),
            known["scores"],
            None if None in losses else math.fsum(losses) / len(losses),
            {test: known["tests"][test] for test in self.tests},
            tuple(known["nonfinite"]),
        )

    def _measured(self, weights: Sequence[float], name: str) -> dict[str, Any]:
        nonfinite = self.write(weights, name)
        scores: dict[str, Any] = {}
        tests: dict[str, Any] = {}
        losses: dict[str, float | None] = {}
        started = time.perf_counter()
        for sets, found in ((self.sets, scores), (self.tests, tests)):
            for which, data in sets.items():
                loss = _Loss(self.metric)
                with naming(f"scoring {name} on {which}", "the model holds it"):
                    found[which] = run_evaluation(self.model, data, self.metric, watch=loss.take).score
                if sets is self.sets:
                    losses[which] = found[which] if self.metric.name == "nll" else loss.value
        self.passes += len(self.sets)
        self.timing["score"] += time.perf_counter() - started
        return {"scores": scores, "losses": losses, "tests": tests, "nonfinite": list(nonfinite)}


class _Loss:
    """The cross-entropy beside another metric, in the same pass; nothing where the logits are not of classes."""

    def __init__(self, metric: Metric) -> None:
        self._accumulator: Accumulator | None = None
        if metric.make is not None and metric.name != "nll":
            self._accumulator = as_metric("nll").accumulator()

    def take(self, logits: Tensor, labels: Tensor) -> None:
        if self._accumulator is None:
            return
        try:
            self._accumulator.update(logits, labels)
        except SoupError:  # labels that the metric ignores and the loss does not know
            self._accumulator = None

    @property
    def value(self) -> float | None:
        return None if self._accumulator is None else self._accumulator.value()
