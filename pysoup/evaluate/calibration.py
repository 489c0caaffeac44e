"""Calibration: does a model that is 80% sure turn out right 80% of the time? And the one number that mends it.

Expected calibration error with bins of equal mass (paper, section 5 and Figure B.2) or equal width, the bins of a
reliability diagram, and temperature scaling (Guo et al. 2017).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import SoupError
from ..logits import score_logits

Equal = Literal["mass", "width"]
BINS = 15
BOUNDS = (1 / 64, 64.0)
"""Of :func:`temperature`: beyond them a softmax is flat, or all but a point, for any logits that a model gives."""
_ROWS = 4096
"""Rows of logits that are wide at a time; fixed, so that sums have one order."""
_SLACK = 1e-6
"""By which a probability that was summed in f32 may miss the interval from 0 to 1."""
_STEPS = 200


@dataclass(frozen=True)
class Bin:
    """Samples of like confidence: one bar of a reliability diagram."""

    lower: float
    """Of equal width the bin's bound, exclusive but for 0; of equal mass the least confidence in it."""
    upper: float
    """The bound, inclusive; of equal mass the largest confidence in it."""
    confidence: float
    """Mean over the samples."""
    accuracy: float
    """Share of them that are right."""
    count: int

    @property
    def gap(self) -> float:
        """How overconfident it is: positive where the confidence is above the accuracy."""
        return self.confidence - self.accuracy


@dataclass(frozen=True)
class Calibration:
    """How one model (or ensemble) does on one set, at one temperature."""

    beta: float
    """What the logits were multiplied with."""
    accuracy: float
    confidence: float
    """The mean softmax probability of the predictions."""
    nll: float
    """Nats per sample."""
    ece: float
    """With bins of equal mass, as the paper's."""
    ece_width: float
    """With bins of equal width."""
    bins: list[Bin]
    """Of equal mass."""


def reliability(
    confidence: Tensor | Any, correct: Tensor | Any, *, bins: int = BINS, equal: Equal = "mass"
) -> list[Bin]:
    """Group samples by ``confidence`` ``[N]`` (probabilities) and say how many are ``correct`` (bool ``[N]``).

    Of ``equal`` width, bin i of B takes confidences in (i/B, (i+1)/B], and 0 goes to the first. Of equal mass, the
    samples are sorted by confidence and cut after the (i N // B)-th; samples of the same confidence are never parted: a
    cut between them moves up, so that the lower bin gets all. Empty bins are left out, so there may be fewer than
    ``bins``. The order of the samples makes no difference to any bit of the result.

    :class:`pysoup.LogitScores` has both on request (one row of ``confidence`` and ``correct`` each); samples of ignored
    labels, whose confidence is NaN, have to be left out. Raises :class:`SoupError` for no samples, shapes that differ
    and confidences that are no probabilities.
    """
    sure, right = _checked(confidence, correct, bins)
    if equal not in ("mass", "width"):
        raise SoupError("bins are of equal mass or equal width", found=repr(equal), expected="'mass' or 'width'")
    sure, order = sure.sort(stable=True)
    right = right[order]
    if equal == "width":
        edges = torch.arange(bins + 1, dtype=torch.float64) / bins
        # The number of confidences up to each edge, the edge itself with them.
        cuts = [0, *torch.searchsorted(sure, edges[1:], right=True).tolist()]
        bounds = edges.tolist()
        return [_bin(sure[a:b], right[a:b], bounds[i : i + 2]) for i, (a, b) in enumerate(pairwise(cuts)) if a < b]
    ranks = torch.tensor([number * len(sure) // bins for number in range(1, bins + 1)])
    # A cut at rank r ends below sample r: moved to behind the last one that equals sample r - 1.
    last = sure[(ranks - 1).clamp_min(0)]
    moved = torch.searchsorted(sure, last, right=True).where(ranks > 0, ranks)
    cuts = [0, *moved.tolist()]
    return [_bin(sure[a:b], right[a:b], None) for a, b in pairwise(cuts) if a < b]


def ece(confidence: Tensor | Any, correct: Tensor | Any, *, bins: int = BINS, equal: Equal = "mass") -> float:
    """The expected calibration error, in [0, 1]: the mean over samples of \\|confidence - accuracy\\| of their bin.

    Arguments, bins and errors are those of :func:`reliability`; the paper's has bins of equal mass.
    """
    return _ece(reliability(confidence, correct, bins=bins, equal=equal))


def calibration(
    logits: Tensor,
    labels: Tensor,
    *,
    beta: float = 1.0,
    bins: int = BINS,
    ignore_index: int | None = None,
) -> Calibration:
    """Accuracy, likelihood and calibration of ``beta * logits`` (``[N, C]``, labels ``[N]``) in one fused pass.

    Raises :class:`SoupError` for rows without a finite softmax, as :func:`reliability` does.
    """
    scores = score_logits(
        logits if beta == 1.0 else logits * beta,
        labels,
        k=(1,),
        per_sample=("correct", "confidence"),
        ignore_index=ignore_index,
    )
    assert scores.correct is not None and scores.confidence is not None and scores.nll is not None  # noqa: PT018
    sure, right = scores.confidence[0], scores.correct[0]
    if ignore_index is not None:
        counts = labels.to(sure.device) != ignore_index
        sure, right = sure[counts], right[counts]
    by_mass = reliability(sure, right, bins=bins)
    samples = int(scores.samples)
    return Calibration(
        beta=float(beta),
        accuracy=int(scores.top[1]) / samples,
        confidence=math.fsum(b.confidence * b.count for b in by_mass) / samples,
        nll=max(float(scores.nll), 0.0) / samples,
        ece=_ece(by_mass),
        ece_width=ece(sure, right, bins=bins, equal="width"),
        bins=by_mass,
    )


def temperature(
    logits: Tensor,
    labels: Tensor,
    *,
    bounds: tuple[float, float] = BOUNDS,
    ignore_index: int | None = None,
) -> float:
    """The beta > 0 that minimises the mean cross-entropy of ``beta * logits`` (``[N, C]``, labels ``[N]``).

    The loss is convex in beta, so the minimum is found by Newton's method in f64, held in a bracket that halves where
    a step would leave it: to a relative 1e-10, the same number in every run. A result at one of the ``bounds`` means
    that the minimum is beyond it: above, where every prediction is right, say. Predictions do not depend on beta. (A
    temperature in the sense of Guo et al. is 1 / beta.)

    Raises :class:`SoupError` for no samples, logits that are not finite, labels out of range, and where all logits
    of each row are equal, since no beta is better than another then.
    """
    rows = _Rows(logits, labels, ignore_index)
    low, high = (float(bound) for bound in bounds)
    if not 0.0 < low < high < math.inf:
        raise SoupError("bounds of a temperature", found=f"{low}, {high}", expected="two positive numbers, ascending")
    if rows.is_flat():
        raise SoupError("the logits of every sample are all equal, so no temperature is better than another")
    if rows.slopes(low)[0] >= 0:
        return low
    if rows.slopes(high)[0] <= 0:
        return high
    beta = min(max(1.0, low), high)
    for _ in range(_STEPS):
        slope, curvature = rows.slopes(beta)
        if slope == 0:
            break
        low, high = (beta, high) if slope < 0 else (low, beta)
        step = beta - slope / curvature if curvature > 0 else math.inf
        # Geometric, as the bounds are: far too large a beta has a curvature that says nothing.
        following = step if low < step < high else math.sqrt(low * high)
        if abs(following - beta) <= 1e-10 * beta or not low < following < high:
            beta = following
            break
        beta = following
    return beta


class _Rows:
    """Logits whose cross-entropy is a function of beta."""

    def __init__(self, logits: Tensor, labels: Tensor, ignore_index: int | None) -> None:
        if logits.dim() != 2 or labels.shape != logits.shape[:1] or not logits.is_floating_point():
            found = f"logits {logits.dtype} {list(logits.shape)} and labels {list(labels.shape)}"
            raise SoupError("a temperature is of logits and labels", found=found, expected="floats [N, C] and [N]")
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise SoupError("labels must be class numbers", found=labels.dtype, expected="an integer dtype")
        logits, labels = logits.detach(), labels.detach().to(logits.device, torch.int64)
        if ignore_index is not None:
            counts = labels != ignore_index
            logits, labels = logits[counts], labels[counts]
        if not len(labels) or not logits.shape[1]:
            raise SoupError("there is nothing to fit a temperature to", found=f"logits {list(logits.shape)}")
        if bool(((labels < 0) | (labels >= logits.shape[1])).any()):
            wrong = labels[(labels < 0) | (labels >= logits.shape[1])][0]
            raise SoupError("a label is not a class", found=int(wrong), expected=f"0 to {logits.shape[1] - 1}")
        if not bool(torch.isfinite(logits).all()):
            row = int((~torch.isfinite(logits)).any(1).to(torch.int8).argmax())
            raise SoupError("logits must be finite for a temperature", found=f"NaN or infinity in row {row}")
        self._logits, self._labels = logits, labels

    def is_flat(self) -> bool:
        return bool((self._logits == self._logits[:, :1]).all())

    def slopes(self, beta: float) -> tuple[float, float]:
        """First and second derivative of the mean cross-entropy in beta: E_p[z] - z_y, and Var_p[z] >= 0."""
        first, second = [], []
        for start in range(0, len(self._labels), _ROWS):
            z = self._logits[start : start + _ROWS].double()
            z = z - z.amax(1, keepdim=True)
            own = z.gather(1, self._labels[start : start + _ROWS, None]).squeeze(1)
            p = (beta * z).softmax(1)
            mean = (p * z).sum(1)
            first.append(float((mean - own).sum()))
            second.append(float((p * (z - mean[:, None]).square()).sum()))
        return math.fsum(first) / len(self._labels), math.fsum(second) / len(self._labels)


def _checked(confidence: Any, correct: Any, bins: int) -> tuple[Tensor, Tensor]:
    """Confidences in f64 and flags, on the CPU."""
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise SoupError("bins must be a positive integer", found=repr(bins))
    sure, right = torch.as_tensor(confidence).detach().cpu(), torch.as_tensor(correct).detach().cpu()
    found = f"{sure.dtype} {list(sure.shape)} and {right.dtype} {list(right.shape)}"
    if sure.dim() != 1 or sure.shape != right.shape or not sure.is_floating_point() or right.dtype != torch.bool:
        raise SoupError("confidences and whether each is right", found=found, expected="floats [N] and torch.bool [N]")
    if not len(sure):
        raise SoupError("there are no samples, so no calibration", found=found)
    sure = sure.double()
    bad = ~((sure >= -_SLACK) & (sure <= 1 + _SLACK))  # NaN too
    if bool(bad.any()):
        row = int(bad.to(torch.int8).argmax())
        what = f"the confidence of sample {row} is not a probability"
        raise SoupError(what, found=float(sure[row]), expected="0 to 1")
    return sure.clamp(0.0, 1.0), right


def _bin(sure: Tensor, right: Tensor, bounds: list[float] | None) -> Bin:
    lower, upper = bounds or (float(sure[0]), float(sure[-1]))
    count = len(sure)
    # Exact sums: the same for any order of samples.
    return Bin(lower, upper, math.fsum(sure.tolist()) / count, int(right.sum()) / count, count)


def _ece(found: list[Bin]) -> float:
    return math.fsum(b.count * abs(b.gap) for b in found) / sum(b.count for b in found)
