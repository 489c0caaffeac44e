"""Mixing weights: what the caller gave, checked and turned into the factors and the divisor that the kernels apply.

Two laws (see ``csrc/kernels.h`` for the arithmetic):

* equal weights: every factor is 1 and the divisor is K, so the sum is a plain sum with one division at the end, the
  same bits as a running sum (Wortsman et al. 2022, section 2: the soup is the mean);
* unequal weights: factors ``w / sum(w)`` in f64, divisor 1; with ``normalize=False`` the weights as given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .errors import WeightsError


@dataclass(frozen=True)
class Mix:
    """``factors[i]`` belongs to ingredient ``members[i]``; ingredients of weight 0 are no members and are not read."""

    members: tuple[int, ...]
    factors: tuple[float, ...]
    divisor: float

    @property
    def shares(self) -> tuple[float, ...]:
        """What each member contributes, for reports: the factors over the divisor."""
        return tuple(f / self.divisor for f in self.factors)


def check_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...] | None:
    """The weights as floats, or None for equal ones. Raises :class:`WeightsError`."""
    if weights is None:
        return None
    try:
        values = tuple(float(w) for w in weights)
    except (TypeError, ValueError):
        raise WeightsError("weights must be numbers", found=weights) from None
    if len(values) != count:
        raise WeightsError("wrong number of weights", found=len(values), expected=f"{count}, one for each input")
    for i, w in enumerate(values):
        if not math.isfinite(w):
            raise WeightsError(f"weight {i + 1} is not finite", found=w)
    if not any(values):
        raise WeightsError("all weights are zero")
    return values


Weights = Sequence[float] | Mapping[str, Sequence[float]]
"""One number for each ingredient; or such numbers for each tensor, by its name."""


class Laws:
    """The mix of every tensor of ``count`` ingredients: ``weights`` that all share, or those by tensor."""

    def __init__(self, weights: Weights | None, count: int, *, normalize: bool) -> None:
        self._normalize = normalize
        self._shared = None if isinstance(weights, Mapping) else check_weights(weights, count)
        self._known: dict[tuple[int, ...], Mix] = {}
        self.by_tensor: dict[str, tuple[float, ...]] = {}
        """The weights by tensor; empty where all share theirs."""
        for name, row in weights.items() if isinstance(weights, Mapping) else ():
            self.by_tensor[name] = _row(name, row, count)
        if isinstance(weights, Mapping) and not weights:
            raise WeightsError("no weights given")

    def of(self, name: str, present: Sequence[int]) -> Mix:
        """The mix of one tensor over the ingredients that have it (indices, ascending); see :func:`mix`."""
        if self.by_tensor:
            return mix(self.by_tensor[name], present, normalize=self._normalize)
        key = tuple(present)
        if key not in self._known:
            self._known[key] = mix(self._shared, key, normalize=self._normalize)
        return self._known[key]

    def overall(self, count: int, sizes: Mapping[str, int]) -> Mix:
        """What takes part, and its share: of weights by tensor, the mean over all elements, ``sizes`` by tensor.

        ``sizes`` are all tensors that are averaged: the weights must be for these.
        """
        if not self.by_tensor:
            return self.of("", range(count))
        for names, others, what in (
            (sizes, self.by_tensor, "no weights for this tensor"),
            (self.by_tensor, sizes, "weights for a tensor that is not averaged"),
        ):
            if odd := [name for name in names if name not in others]:
                raise WeightsError(what, tensor=odd[0], found=f"{len(odd)} such")
        rows = [self.of(name, range(count)) for name in sizes]
        total = float(sum(sizes.values())) or 1.0
        means = [0.0] * count
        for row, size in zip(rows, sizes.values(), strict=True):
            for member, share in zip(row.members, row.shares, strict=True):
                means[member] += share * size / total
        members = tuple(sorted({member for row in rows for member in row.members}))
        return Mix(members, tuple(means[member] for member in members), 1.0)


def _row(name: str, row: Sequence[float], count: int) -> tuple[float, ...]:
    try:
        return check_weights(row, count) or (1.0,) * count
    except WeightsError as error:
        raise error.but(tensor=name) from None


_CANCELLED = 2.0**-40
"""Of the sum of magnitudes: a smaller sum of weights is a zero that was not hit exactly."""


def mix(weights: tuple[float, ...] | None, present: Sequence[int], *, normalize: bool = True) -> Mix:
    """The law for the ingredients in ``present`` (indices into the weights, ascending).

    ``weights`` has passed :func:`check_weights`. Raises :class:`WeightsError` where all of these have weight 0, and
    where normalising would divide by zero.
    """
    if weights is None:
        members = tuple(present)
        return Mix(members, (1.0,) * len(members), float(len(members)))
    members = tuple(i for i in present if weights[i] != 0)
    if not members:
        raise WeightsError("all weights are zero")
    chosen = [weights[i] for i in members]
    if not normalize:
        return Mix(members, tuple(chosen), 1.0)
    if all(w == chosen[0] for w in chosen):
        return Mix(members, (1.0,) * len(members), float(len(members)))
    try:
        total, size = math.fsum(chosen), math.fsum(map(abs, chosen))
    except OverflowError:
        total = size = math.inf
    # 0.1, 0.3 and -0.4 cancel too, as far as anyone who writes them down is concerned.
    if not math.isfinite(total) or abs(total) <= _CANCELLED * size:
        raise WeightsError("weights cannot be normalised", found=f"sum {total:g}", expected="a finite sum other than 0")
    return Mix(members, tuple(w / total for w in chosen), 1.0)
