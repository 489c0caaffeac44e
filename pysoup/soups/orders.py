"""Greedy soups in random orders: how much the order by score is worth (paper, Table 3)."""

from __future__ import annotations

import math
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..evaluate import HeldOut, MetricLike, as_heldout
from ..names import NameFilter, Patterns
from ..progress import StepProgress
from .candidates import Checkpoints, open_pool
from .given import Accept, whole_number
from .greedy import greedy_soup
from .soup import Soup


@dataclass(frozen=True)
class OrderStatistics:
    """The soups of several random orders, and their held-out scores."""

    soups: list[Soup]
    scores: list[float]
    mean: float
    sd: float | None
    """The sample standard deviation (n - 1); ``None`` of a single order."""


def random_orders(
    checkpoints: Checkpoints,
    model: nn.Module,
    heldout: HeldOut | Any,
    metric: MetricLike = "accuracy",
    *,
    orders: int = 3,
    seed: int = 0,
    accept: Accept = ">=",
    min_delta: float = 0.0,
    max_ingredients: int | None = None,
    early_rejection: bool = True,
    run: str | os.PathLike[str] | None = None,
    include: Patterns = (),
    exclude: Patterns = (),
    entry: str | None = None,
    integers: str = "auto",
    sum_memory: int | str | None = None,
    progress: StepProgress | None = None,
) -> OrderStatistics:
    """:func:`greedy_soup` with ``order="random"`` and the seeds ``seed``, ``seed + 1``, ..., one for each order.

    Single models are not scored. ``run`` is a directory with a run directory for each order in it; all of them know the
    checkpoints by one reading of their bytes. The other options are those of :func:`greedy_soup`. The model holds the
    last soup. Each soup keeps its own running sum (4 bytes a parameter where everything has 16 bits or fewer, else 8),
    each with a budget of ``sum_memory``.
    """
    orders, seed = whole_number("orders", orders, least=1), whole_number("seed", seed)
    heldout = as_heldout(heldout)
    pool = open_pool(checkpoints, model, entry, NameFilter.of(include, exclude))
    soups: list[Soup] = []
    for number in range(orders):

        def advance(done: int, total: int, what: str, number: int = number) -> None:
            if progress is not None:
                progress(number * total + done, orders * total, f"order {number + 1}, {what}")

        soups.append(
            greedy_soup(
                pool,
                model,
                heldout,
                metric,
                accept=accept,
                min_delta=min_delta,
                order="random",
                seed=seed + number,
                max_ingredients=max_ingredients,
                early_rejection=early_rejection,
                run=None if run is None else Path(run) / f"order-{seed + number}",
                integers=integers,
                sum_memory=sum_memory,
                progress=advance,
            )
        )
    scores = [math.nan if soup.score is None else soup.score for soup in soups]
    sd = statistics.stdev(scores) if len(scores) > 1 else None
    return OrderStatistics(soups, scores, statistics.fmean(scores), sd)
