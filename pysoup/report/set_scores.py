"""What one model is worth on one set: the metric, the likelihood and the calibration, from a single pass."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SoupError
from ..evaluate import Bin, HeldOut, Metric, run_evaluation
from ..evaluate.calibration import BINS, ece, reliability
from ..logits import score_logits
from ..ops import LOGIT_DTYPES
from ..soups.soup import finite

BIN_FIELDS = ("confidence", "accuracy", "count")


@dataclass(frozen=True)
class SetScores:
    """``score`` is the metric's. ``nll`` is in nats per sample, ``ece`` in [0, 1] with the ``bins`` of equal mass.

    Both are None, and there are no bins, where the model's output is not logits ``[N, C]`` with class numbers, or not
    finite.
    """

    score: float
    nll: float | None
    ece: float | None
    samples: int
    seconds: float
    bins: tuple[Bin, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For JSON: each bin as confidence, accuracy and count."""
        fields = {name: finite(value) for name, value in asdict(self).items() if name != "bins"}
        return {**fields, "bins": [[getattr(b, field) for field in BIN_FIELDS] for b in self.bins]}


def score_model(model: nn.Module, data: HeldOut, metric: Metric, *, bins: int = BINS) -> SetScores:
    """One pass of ``model`` over ``data``. Raises what :func:`pysoup.evaluate.evaluate` does."""
    tally = _Tally(metric)
    seen = run_evaluation(model, data, metric, watch=tally.update)
    assert seen.score is not None  # nothing could stop it
    return tally.finished(seen.score, seen.samples, seen.seconds, bins)


def score_outputs(logits: Tensor, labels: Tensor, metric: Metric, seconds: float, *, bins: int = BINS) -> SetScores:
    """The same of logits ``[N, C]`` that are there, such as an ensemble's."""
    tally, accumulator = _Tally(metric), metric.accumulator()
    accumulator.update(logits, labels)
    tally.update(logits, labels)
    return tally.finished(accumulator.value(), accumulator.samples, seconds, bins)


class _Tally:
    """Sums likelihoods and keeps, for each sample, the confidence and whether it is right."""

    def __init__(self, metric: Metric) -> None:
        # Of the metrics with one, what is padding for the score is padding here.
        self._ignored: int | None = getattr(metric.accumulator(), "ignore_index", None)
        self._nll = 0.0
        self._sure: list[Tensor] = []
        self._right: list[Tensor] = []
        self._fits = True

    def update(self, logits: Tensor, labels: Tensor) -> None:
        shaped = logits.dim() == 2 and labels.dim() == 1 and len(logits) == len(labels) and logits.shape[1] > 1
        classes = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
        self._fits = self._fits and shaped and classes and logits.dtype in LOGIT_DTYPES
        if not self._fits or not len(labels):
            return
        try:
            scores = score_logits(
                logits, labels, k=(1,), per_sample=("correct", "confidence"), ignore_index=self._ignored
            )
            scores.check_labels()
        except SoupError:  # labels that are no classes: the metric knew what to do with them
            self._fits = False
            return
        assert scores.nll is not None and scores.correct is not None and scores.confidence is not None  # noqa: PT018
        sure, right = scores.confidence[0].cpu(), scores.correct[0].cpu()
        if self._ignored is not None:
            counts = labels.cpu() != self._ignored
            sure, right = sure[counts], right[counts]
        self._nll += float(scores.nll)
        self._sure.append(sure)
        self._right.append(right)

    def finished(self, score: float, samples: int, seconds: float, bins: int) -> SetScores:
        sure = torch.cat(self._sure) if self._sure else torch.empty(0)
        if not self._fits or not len(sure) or not bool(torch.isfinite(sure).all()):
            return SetScores(score, None, None, samples, seconds)
        right = torch.cat(self._right)
        return SetScores(
            score=score,
            nll=max(self._nll, 0.0) / len(sure),  # 0 less a rounding, at best
            ece=ece(sure, right, bins=bins),
            samples=samples,
            seconds=seconds,
            bins=tuple(reliability(sure, right, bins=bins)),
        )
