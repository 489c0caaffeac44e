"""The two sides of the paper's Equation (1), from logits: the loss of a soup less that of the ensemble.

With theta_a = (1 - a) theta_0 + a theta_1, Df = f(theta_1) - f(theta_0) and L the mean cross-entropy of beta f:

    L(soup) - L(ensemble)
        ~=  a (1 - a) / 2 * (- d2/da2 L(theta_a) + beta^2 E_x Var_{Y ~ softmax(beta f(theta_a))}[Df_Y])

Everything here is f64, some rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..errors import SoupError

_ROWS = 4096
STENCIL = {-2: -1.0, -1: 16.0, 0: -30.0, 1: 16.0, 2: -1.0}
"""Twelve times the second derivative by five points a step apart: the error is of the order of step^4."""
_NARROW = {-1: 1.0, 0: -2.0, 1: 1.0}


def mean_loss(logits: Tensor, labels: Tensor, beta: float = 1.0) -> float:
    """The mean cross-entropy of ``beta * logits`` (``[N, C]``, labels ``[N]``) in nats."""
    total = []
    for rows in _slices(len(labels)):
        z = beta * logits[rows].double()
        own = z.gather(1, labels[rows, None].long()).squeeze(1)
        total.append(float((z.logsumexp(1) - own).sum()))
    return math.fsum(total) / len(labels)


def mean_error(logits: Tensor, labels: Tensor) -> float:
    """The share of samples whose largest logit, of equal ones the first, is not the label's; of NaN rows all."""
    wrong = (logits.argmax(1) != labels) | logits.isnan().any(1)
    return int(wrong.sum()) / len(labels)


def variance(logits: Tensor, difference: Tensor, beta: float) -> float:
    """``E_x Var_{Y ~ softmax(beta * logits)}[difference_Y]``, both ``[N, C]``."""
    total = []
    for rows in _slices(len(logits)):
        p = (beta * logits[rows].double()).softmax(1)
        d = difference[rows].double()
        mean = (p * d).sum(1, keepdim=True)
        total.append(float((p * (d - mean).square()).sum()))
    return math.fsum(total) / len(logits)


def second_derivative(losses: Mapping[int, float], step: float) -> tuple[float, float]:
    """From the losses at -2, -1, 0, 1, 2 steps: the second derivative, and how far off three points alone would be.

    The five-point formula is ``(4 D(step) - D(2 step)) / 3`` for the three-point ones D, whose error is of the order of
    ``step**2`` and is about the second number; that of the first is smaller by as much again. Roundings of a loss by u
    are amplified to at most ``16 / 3 * u / step**2`` (64 u over 12 squared steps).
    """
    wide = sum(weight * losses[at] for at, weight in STENCIL.items()) / (12 * step * step)
    narrow = sum(weight * losses[at] for at, weight in _NARROW.items()) / (step * step)
    return wide, abs(wide - narrow)


def predicted_difference(alpha: float, beta: float, curvature: float, spread: float) -> float:
    """The right-hand side; ``curvature`` is d2/da2 of the loss at that beta, ``spread`` the :func:`variance`."""
    return alpha * (1 - alpha) / 2 * (beta * beta * spread - curvature)


def check_logits(logits: Tensor, labels: Tensor, where: str) -> None:
    """Raises :class:`SoupError` for what has no cross-entropy."""
    if logits.dim() != 2 or labels.dim() != 1 or labels.is_floating_point() or len(logits) != len(labels):
        found = f"{list(logits.shape)} and {labels.dtype} {list(labels.shape)}"
        raise SoupError(f"no cross-entropy on {where}", found=found, expected="logits [N, C] and class numbers [N]")
    if not len(labels) or not bool(((labels >= 0) & (labels < logits.shape[1])).all()):
        raise SoupError(f"no cross-entropy on {where}: a label is not a class")


def _slices(count: int) -> Iterator[slice]:
    for start in range(0, count, _ROWS):
        yield slice(start, start + _ROWS)


def difference(first: Tensor, second: Tensor) -> Tensor:
    """``second - first`` in f64."""
    return second.to(torch.float64) - first.to(torch.float64)
