"""Scores of averaged logits, from a cache of them: the inner loop of greedy ensembles."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..evaluate import Metric
from ..evaluate.classification import NegativeLogLikelihood, TopK
from ..logits import score_ensemble, score_logits
from ..ops import LOGIT_DTYPES
from .logit_cache import LogitCache, factor, mean_dtype

_ROWS = 4096
"""Of averaged logits that are written out at a time, for a metric that :func:`pysoup.score_ensemble` does not have."""


class LogitSum:
    """The running sum of some models' logits, and what the average with one more of them scores.

    That average is ``scale * (sum + logits)``, the sum in the order of addition and ``scale = 1 / (n + 1)``, each
    operation rounded to f32, or to f64 where the logits are f64. Scores are those of one batch of all samples.
    """

    def __init__(self, cache: LogitCache, metric: Metric) -> None:
        self.metric = metric
        self.added: list[int] = []
        """The models in the sum, each as often as it was added."""
        self._cache = cache
        self._sum: Tensor | None = None

    def add(self, index: int) -> None:
        """The sum gets this model's logits."""
        logits = self._cache.logits(index)
        self._sum = logits.to(mean_dtype(logits), copy=True) if self._sum is None else self._sum.add_(logits)
        self.added.append(index)

    def mean_(self) -> Tensor:
        """The average; the sum is used up."""
        assert self._sum is not None
        total, self._sum = self._sum, None
        return total.mul_(factor(len(self.added), total.dtype))

    def with_each(self, indices: Sequence[int]) -> list[float]:
        """The score of the average of the sum and each of these models alone; of an empty sum, their own."""
        scores: list[float] = []
        for _, stack in self._cache.stacks(indices):
            scores += self._scores(stack)
        return scores

    def _scores(self, stack: Tensor) -> list[float]:
        labels, kind = self._cache.labels, self.metric.accumulator()
        assert labels is not None
        fused = isinstance(kind, (TopK, NegativeLogLikelihood)) and stack.dim() == 3 and stack.dtype in LOGIT_DTYPES
        if not fused or not len(labels):
            return [self._in_full(logits, labels) for logits in stack]
        assert isinstance(kind, (TopK, NegativeLogLikelihood))
        if self._sum is None:
            found = score_logits(stack, labels, k=kind.k, nll=kind.nll, ignore_index=kind.ignore_index)
        else:
            scale = 1.0 / (len(self.added) + 1)
            found = score_ensemble(
                self._sum, stack, labels, scale=scale, k=kind.k, nll=kind.nll, ignore_index=kind.ignore_index
            )
        totals = found.top[kind.k[0]] if found.nll is None else found.nll.clamp_min(0.0)
        if not found.samples:
            return [self._in_full(logits, labels) for logits in stack]  # which says so
        return [total / found.samples for total in totals.tolist()]

    def _in_full(self, logits: Tensor, labels: Tensor) -> float:
        """By the metric's own accumulator, a few rows at a time."""
        kind = self.metric.accumulator()
        dtype = mean_dtype(logits)
        scale = factor(len(self.added) + 1, dtype)
        for start in range(0, len(labels), _ROWS):
            rows = slice(start, start + _ROWS)
            part = logits[rows].to(dtype)
            kind.update(part if self._sum is None else (self._sum[rows] + part) * scale, labels[rows])
        return kind.value()
