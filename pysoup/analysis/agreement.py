"""How well one list of numbers predicts another: correlations, and whether the signs are the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..soups.soup import finite


@dataclass(frozen=True)
class Agreement:
    """Of ``count`` pairs of numbers, those that are not finite left out."""

    count: int
    pearson: float
    """Linear correlation; NaN where one of the lists is constant or has fewer than two numbers."""
    spearman: float
    """Pearson's of the ranks, ties with their mean rank."""
    same_sign: float
    """The share with the same sign, of ``signed`` pairs in which neither number is 0; NaN where there is none."""
    signed: int

    def to_json(self) -> dict[str, Any]:
        return {name: finite(value) for name, value in asdict(self).items()}


def agreement(predicted: Sequence[float], true: Sequence[float]) -> Agreement:
    """Compare two lists of the same length."""
    pairs = [(a, b) for a, b in zip(predicted, true, strict=True) if math.isfinite(a) and math.isfinite(b)]
    one, other = (torch.tensor([pair[side] for pair in pairs], dtype=torch.float64) for side in (0, 1))
    signed = (one != 0) & (other != 0)
    same = int((signed & (one.sign() == other.sign())).sum())
    count = int(signed.sum())
    return Agreement(
        count=len(pairs),
        pearson=_pearson(one, other),
        spearman=_pearson(_ranks(one), _ranks(other)),
        same_sign=same / count if count else math.nan,
        signed=count,
    )


def _pearson(one: Tensor, other: Tensor) -> float:
    if len(one) < 2 or bool((one == one[0]).all()) or bool((other == other[0]).all()):
        return math.nan
    one, other = one - one.mean(), other - other.mean()
    # Each by its own size first: a product of two variances may underflow.
    found = (one / one.norm()) @ (other / other.norm())
    return float(found.clamp(-1.0, 1.0))


def _ranks(values: Tensor) -> Tensor:
    """From 0; equal values share the mean of theirs."""
    ordered = values.sort().values
    below, upto = (torch.searchsorted(ordered, values, right=right).double() for right in (False, True))
    return (below + upto - 1) / 2
