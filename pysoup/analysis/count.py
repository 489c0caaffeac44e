"""How much each further model is worth: soups and ensembles of the first n models, over random orders (Figure B.1)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .._version import __version__
from ..evaluate import MetricLike
from ..progress import StepProgress
from ..soups.candidates import Checkpoints
from ..soups.given import whole_number
from ..task import Task
from .orders import Point, by_set, first, random_positions
from .sets import HELDOUT, Sets
from .subsets import Subsets
from .views import chosen
from .worth import Described

METHODS = ("best", "uniform", "greedy", "ensemble")
"""The model with the best held-out score of the first n; their uniform soup; their greedy soup, tried in this
order; their logit ensemble."""


@dataclass(frozen=True)
class CountCurve:
    """``curves[method][set]`` is a list of points for n = 1 to the number of models.

    Sets are ``heldout``, the test sets and, of two shifts or more, their unweighted mean. ``orders`` has the positions
    of the checkpoints, ``kept`` those in each order's greedy soup.
    """

    checkpoints: list[str]
    metric: str
    direction: str
    seed: int
    orders: list[list[int]]
    kept: list[list[int]]
    curves: dict[str, dict[str, list[Point]]]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "pysoup": __version__,
            "analysis": "count",
            "metric": self.metric,
            "direction": self.direction,
            "seed": self.seed,
            "checkpoints": self.checkpoints,
            "orders": self.orders,
            "kept": self.kept,
            "curves": {
                method: {name: [point.to_json() for point in points] for name, points in sets.items()}
                for method, sets in self.curves.items()
            },
            "notes": self.notes,
        }


def count_curve(
    task: Sets | str | Task,
    checkpoints: Checkpoints,
    metric: MetricLike = "accuracy",
    *,
    orders: int = 3,
    seed: int = 0,
    run: str | os.PathLike[str] | None = None,
    entry: str | None = None,
    integers: str = "auto",
    logit_memory: int | str | None = None,
    progress: StepProgress | None = None,
) -> CountCurve:
    """Score :data:`METHODS` with the first 1, 2, ..., K models of random ``orders`` (with ``seed`` and those after it).

    Each model takes one pass over all sets of ``task``, and each uniform soup one more: sums of weights and of logits
    go on from n to n + 1. A greedy soup takes a pass over the held-out set for each model, and one over the others when
    it keeps it. Selection sees the held-out set alone. ``run`` is a directory for what was scored: a run that was
    killed goes on from there, and :func:`calibration_curve` of the same models finds it too. ``logit_memory``
    (``None``: no limit) is for the logits of single models. The task's model holds one of the soups afterwards. Raises
    :class:`SoupError`.
    """
    orders, seed = whole_number("orders", orders, least=1), whole_number("seed", seed)
    sets = chosen(task if isinstance(task, Sets) else Sets(task))
    subsets = Subsets(sets, checkpoints, metric, entry=entry, integers=integers, memory=logit_memory, progress=progress)
    positions = random_positions(len(subsets.candidates), orders, seed)
    found: list[dict[str, list[Described]]] = []
    kept: list[list[int]] = []
    subsets.expect(len(positions) * (len(positions[0]) - 1) + len(positions[0]))
    with subsets.recording(run):
        singles = [_stepped(subsets, index) for index in positions[0]]
        by_index = dict(zip(positions[0], singles, strict=True))
        for order in positions:
            greedy, members = _greedy(subsets, order)
            uniform = [subsets.single(order[0])]
            for n in range(2, len(order) + 1):
                uniform.append(subsets.soup(first(n, order, positions[0])))
                subsets.step(f"the first {n} of {len(order)} models")
            found.append(
                {
                    "best": [by_index[_best(subsets, order[:n])] for n in range(1, len(order) + 1)],
                    "uniform": uniform,
                    "greedy": greedy,
                    "ensemble": [subsets.ensemble(first(n, order, positions[0])) for n in range(1, len(order) + 1)],
                }
            )
            kept.append(members)
    curves = {}
    for method in METHODS:
        tables = {name: [[d.sets[name].score for d in one[method]] for one in found] for name in sets.all}
        curves[method] = by_set(sets, tables)
    return CountCurve(
        checkpoints=subsets.names,
        metric=subsets.metric.name,
        direction=subsets.metric.direction,
        seed=seed,
        orders=positions,
        kept=kept,
        curves=curves,
        notes=subsets.notes,
    )


def _stepped(subsets: Subsets, index: int) -> Described:
    found = subsets.single(index)
    subsets.step(subsets.names[index])
    return found


def _best(subsets: Subsets, members: Sequence[int]) -> int:
    """By the held-out score, ties by the pool's order."""
    key = subsets.metric.sort_key
    return min(members, key=lambda index: (key(subsets.single(index).sets[HELDOUT].score), index))


def _greedy(subsets: Subsets, order: Sequence[int]) -> tuple[list[Described], list[int]]:
    """The greedy soup after each model in turn (the paper's Recipe 1, in this order), and what it has in the end."""
    kept: list[int] = [order[0]]
    best = subsets.soup_score((order[0],))
    found = [subsets.single(order[0])]
    for index in order[1:]:
        members = (*kept, index)
        score = subsets.soup_score(members, "greedy")
        if subsets.metric.accepts(score, best, strict=False):
            kept, best = list(members), score
            found.append(subsets.soup(members, "greedy"))
        else:
            found.append(found[-1])
    return found, kept
