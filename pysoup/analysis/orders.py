"""Random orders in which models are added, and curves over them: mean and spread for each number of models."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..soups.given import given_order
from ..soups.soup import finite
from .sets import HELDOUT, Sets
from .subsets import Members

MEAN_SHIFT = "mean of shifts"


@dataclass(frozen=True)
class Point:
    """One method with the first n models, on one set."""

    n: int
    mean: float
    """Over the orders."""
    sd: float | None
    """The sample standard deviation over the orders; ``None`` of a single one."""
    values: list[float]
    """One for each order."""

    def to_json(self) -> dict[str, Any]:
        values = [finite(value) for value in self.values]
        return {"n": self.n, "mean": finite(self.mean), "sd": finite(self.sd), "values": values}


def random_positions(count: int, orders: int, seed: int) -> list[list[int]]:
    """The orders that greedy soups with these seeds have, too."""
    found = [given_order("random", count, seed + number) for number in range(orders)]
    return [order for order in found if order is not None]


def first(n: int, order: Sequence[int], canonical: Sequence[int]) -> Members:
    """The first n models; of all of them one sum is enough for every order: they differ by roundings."""
    return tuple(canonical if n == len(order) else order[:n])


def by_set(sets: Sets, tables: Mapping[str, list[list[float]]]) -> dict[str, list[Point]]:
    """The points of each set, from tables of values by order and n."""
    found = {name: _points(tables[name]) for name in [HELDOUT, *sets.tests]}
    if len(sets.shifts) > 1:
        found[MEAN_SHIFT] = _points(_mean_table([tables[name] for name in sets.shifts]))
    return found


def _mean_table(tables: Sequence[list[list[float]]]) -> list[list[float]]:
    rows = zip(*tables, strict=True)
    return [[statistics.fmean(values) for values in zip(*row, strict=True)] for row in rows]


def _points(table: list[list[float]]) -> list[Point]:
    return [Point(n, *_spread(values), list(values)) for n, values in enumerate(zip(*table, strict=True), 1)]


def _spread(values: Sequence[float]) -> tuple[float, float | None]:
    if not all(map(math.isfinite, values)):
        return math.nan, None if len(values) < 2 else math.nan
    return statistics.fmean(values), None if len(values) < 2 else statistics.stdev(values)
