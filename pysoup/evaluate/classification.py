"""Accumulators for logits ``[N, C]`` and class labels ``[N]``: top-k accuracy and the negative log-likelihood."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..errors import SoupError
from ..logits import LogitScores, score_logits


class Classification(ABC):
    """Shape and label checks, and totals that stay on the device: nothing waits for it before a score is asked for.

    Labels equal to ``ignore_index`` are left out of the score and of ``samples``.
    """

    k: tuple[int, ...] = ()
    nll = False
    per_sample: tuple[str, ...] = ()
    """What is asked of :func:`pysoup.score_logits`."""

    def __init__(self, ignore_index: int | None = None) -> None:
        self.ignore_index = ignore_index
        self.classes = 0
        self.total: Tensor | None = None
        self._samples: int | Tensor = 0
        self._seen = 0
        self._checks: list[tuple[int, Tensor]] = []

    @property
    def samples(self) -> int:
        """Labels that counted so far; waits for the device if some may have been left out."""
        return int(self._samples)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Take a batch in; :class:`SoupError` where shapes, dtypes or the number of classes do not fit."""
        if logits.dim() != 2 or labels.dim() != 1 or len(logits) != len(labels) or not logits.shape[1]:
            raise shape_error(logits, labels, "logits [N, C] and labels [N]")
        if labels.is_floating_point() or labels.is_complex():
            raise SoupError("labels must be class numbers", found=labels.dtype, expected="an integer dtype")
        if self.classes not in (0, logits.shape[1]):
            raise shape_error(logits, labels, f"{self.classes} classes, as in the first batch")
        self.classes = logits.shape[1]
        if not len(labels):
            return
        labels = self._classes_only(labels.to(logits.device, torch.int64))
        scores = score_logits(
            logits, labels, k=self.k, nll=self.nll, per_sample=self.per_sample, ignore_index=self.ignore_index
        )
        batch = self.adds(scores, labels)
        self.total = batch if self.total is None else self.total + batch
        self._samples = self._samples + scores.samples
        self._seen += len(labels)

    @abstractmethod
    def adds(self, scores: LogitScores, labels: Tensor) -> Tensor:
        """What a batch adds to ``total``."""

    @abstractmethod
    def value(self) -> float:
        """The score of all batches so far; :class:`SoupError` for a label that is no class, or if nothing counted."""

    def bound(self, samples: int) -> float | None:
        """The best score still possible if ``samples`` labels count in all, or fewer; ``None``: unknown."""
        return None

    def finished(self) -> Tensor:
        """The checked total; waits for the device."""
        self._check_labels()
        if self.total is None or not self.samples:
            raise SoupError("the held-out set is empty" if self.total is None else "no held-out sample counts")
        return self.total

    def so_far(self, samples: int) -> Tensor | None:
        """The checked total for :meth:`bound`, ``None`` before the first batch; waits for the device."""
        self._check_labels()
        if samples < self.samples:
            raise SoupError("more held-out samples count than there are", found=self.samples, expected=samples)
        return self.total

    def _classes_only(self, labels: Tensor) -> Tensor:
        """The labels, any that is no class replaced by one that is; :meth:`_check_labels` finds it later.

        So no device is waited for, where a check per batch would.
        """
        inside = labels.clamp(0, self.classes - 1)
        if self.ignore_index is not None:
            inside = torch.where(labels == self.ignore_index, labels, inside)
        wrong = inside != labels
        first = wrong.to(torch.int8).argmax().view(1)
        self._checks.append((self._seen, torch.cat([wrong.any().view(1), first, labels.index_select(0, first)])))
        return inside

    def _check_labels(self) -> None:
        if not self._checks:
            return
        found = torch.stack([check for _, check in self._checks]).tolist()
        for (start, _), (wrong, first, label) in zip(self._checks, found, strict=True):
            if wrong:
                raise SoupError(
                    f"the label of held-out sample {start + first} is not a class of the model",
                    found=label,
                    expected=f"0 to {self.classes - 1}",
                )
        self._checks.clear()


class TopK(Classification):
    """The share of samples whose label is among the k largest logits, exactly: ``int64`` counts, one division."""

    def __init__(self, k: int, ignore_index: int | None = None) -> None:
        super().__init__(ignore_index)
        self.k = (k,)

    def adds(self, scores: LogitScores, labels: Tensor) -> Tensor:
        return scores.top[self.k[0]].sum()

    def value(self) -> float:
        return int(self.finished().item()) / self.samples

    def bound(self, samples: int) -> float | None:
        """All that is to come right: 1 - wrong / samples.

        Exact: with ``t <= samples`` labels in the end and ``w' >= w`` of them wrong, the score is the quotient
        ``(t - w') / t <= (samples - w) / samples``, and a division of integers, correctly rounded, is monotone.
        """
        total = self.so_far(samples)
        right = 0 if total is None else int(total.item())
        return (right + samples - self.samples) / samples if samples else None


class NegativeLogLikelihood(Classification):
    """The mean cross-entropy in nats: summed in float64, batch after batch."""

    nll = True

    def adds(self, scores: LogitScores, labels: Tensor) -> Tensor:
        assert scores.nll is not None
        return scores.nll.sum().clamp_min(0.0)  # the bound rests on it; NaN stays

    def value(self) -> float:
        return float(self.finished().item()) / self.samples

    def bound(self, samples: int) -> float | None:
        """Nothing more to be added: the sum so far / samples.

        Exact: what a batch adds is not negative, and rounded addition and division are monotone, so the sum never
        falls and the quotient is at most the score. NaN and infinities stay: once the sum is NaN, so is the score.
        """
        total = self.so_far(samples)
        return (0.0 if total is None else float(total.item())) / samples if samples else None


def shape_error(logits: Tensor, labels: Tensor, expected: str) -> SoupError:
    """The one-line error for shapes that do not fit."""
    found = f"logits {list(logits.shape)} and labels {list(labels.shape)}"
    return SoupError("the shapes do not fit the metric", found=found, expected=expected)
