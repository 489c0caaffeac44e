"""One hyperparameter at a time: the average of a grid's two ends against its best single model (paper, Appendix F)."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .._version import __version__
from ..errors import SoupError
from ..evaluate import Direction, MetricLike
from ..progress import StepProgress
from ..record import Record, read_record
from ..soups.candidates import Checkpoints, is_file
from ..soups.soup import finite
from ..task import Task
from .orders import MEAN_SHIFT
from .pairing import KINDS, SEED
from .sets import HELDOUT, Sets
from .subsets import Subsets
from .views import chosen
from .worth import Described

LEAST = 3
"""Models in a grid: between two there is nothing that the ends could be compared with."""


@dataclass(frozen=True)
class Grid:
    """Models that differ in one hyperparameter alone (and perhaps in their seed), in the order of its values."""

    varied: str
    members: list[int]
    values: list[Any]
    singles: dict[str, list[float]] = field(default_factory=dict)
    """By set, the score of each."""
    average: dict[str, float] = field(default_factory=dict)
    """By set, that of the average of the first and the last."""

    def best(self, name: str, direction: Direction) -> float:
        """The best single score on a set, as if it had been chosen there: an upper bound for any choice."""
        known = [score for score in self.singles[name] if not math.isnan(score)]
        return (max if direction == "max" else min)(known, default=math.nan)

    def gain(self, name: str, direction: Direction) -> float:
        """By how much the average is better than that."""
        difference = self.average[name] - self.best(name, direction)
        return difference if direction == "max" else -difference


@dataclass(frozen=True)
class Grids:
    """All grids among ``names``, and what their averages are worth."""

    names: list[str]
    metric: str
    direction: Direction
    grids: list[Grid]
    notes: list[str] = field(default_factory=list)

    @property
    def sets(self) -> list[str]:
        """The names of the sets, with the mean of the shifts."""
        return list(self.grids[0].average)

    def wins(self, name: str) -> int:
        """Grids whose average is better than the best single model, on one set."""
        return sum(grid.gain(name, self.direction) > 0 for grid in self.grids)

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "pysoup": __version__,
            "analysis": "grids",
            "metric": self.metric,
            "direction": self.direction,
            "checkpoints": self.names,
            "wins": {name: self.wins(name) for name in self.sets},
            "grids": [
                {
                    "varied": grid.varied,
                    "members": grid.members,
                    "values": grid.values,
                    "singles": {name: [finite(score) for score in scores] for name, scores in grid.singles.items()},
                    "average": {name: finite(score) for name, score in grid.average.items()},
                }
                for grid in self.grids
            ],
            "notes": self.notes,
        }


def grid_ends(
    task: Sets | str | Task,
    checkpoints: Checkpoints,
    metric: MetricLike = "accuracy",
    *,
    run: str | os.PathLike[str] | None = None,
    entry: str | None = None,
    integers: str = "auto",
    logit_memory: int | str | None = None,
    progress: StepProgress | None = None,
) -> Grids:
    """Score every one-dimensional grid among ``checkpoints``, by the records beside them: single models and the average
    of the two ends, a pass over all sets for each.

    The other options are those of :func:`count_curve`. Raises :class:`SoupError` where there is no grid of three.
    """
    sets = chosen(task if isinstance(task, Sets) else Sets(task))
    subsets = Subsets(sets, checkpoints, metric, entry=entry, integers=integers, memory=logit_memory, progress=progress)
    grids = find_grids([read_record(c.name) if is_file(c) else None for c in subsets.candidates])
    if not grids:
        what = f"no {LEAST} of the checkpoints differ in one hyperparameter alone"
        raise SoupError(what, expected="models of a grid, with the records that pysoup finetune writes beside them")
    needed = sorted({index for grid in grids for index in grid.members})
    subsets.expect(len(needed) + len(grids))
    scored = []
    with subsets.recording(run):
        for index in needed:
            subsets.single(index)
            subsets.step(subsets.names[index])
        for grid in grids:
            singles = [_scores(sets, subsets.single(index)) for index in grid.members]
            average = _scores(sets, subsets.soup((grid.members[0], grid.members[-1])))
            by_set = {name: [one[name] for one in singles] for name in average}
            scored.append(Grid(grid.varied, grid.members, grid.values, by_set, average))
            subsets.step(f"the ends of a grid of {grid.varied}")
    found = subsets.metric
    return Grids(subsets.names, found.name, found.direction, scored, subsets.notes)


def find_grids(records: Sequence[Record | None]) -> list[Grid]:
    """Groups of at least three that differ in one kind of hyperparameter; of equal values the first counts.

    Strengths of augmentation and mixup are one kind. A model may be in a grid for each kind.
    """
    known = {index: dict(record.hyperparameters) for index, record in enumerate(records) if record is not None}
    names = sorted({name for values in known.values() for name in values if name != SEED})
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(KINDS.get(name, name.replace("_", " ")), []).append(name)
    grids = []
    for kind, varied in kinds.items():
        groups: dict[str, dict[str, tuple[Any, int]]] = {}
        for index, values in known.items():
            rest = repr(sorted((name, value) for name, value in values.items() if name not in (*varied, SEED)))
            value = values.get(varied[0]) if len(varied) == 1 else [values.get(name) for name in varied]
            groups.setdefault(rest, {}).setdefault(repr(value), (value, index))
        for group in groups.values():
            if len(group) >= LEAST:
                ordered = sorted(group.values(), key=_order)
                grids.append(Grid(kind, [index for _, index in ordered], [value for value, _ in ordered]))
    return grids


def _order(item: tuple[Any, int]) -> tuple[Any, ...]:
    """Numbers by size, before text and what is missing."""
    values = item[0] if isinstance(item[0], list) else [item[0]]
    return tuple((0, value, "") if isinstance(value, (int, float)) else (1, 0, str(value)) for value in values)


def _scores(sets: Sets, found: Described) -> dict[str, float]:
    scores = {name: found.sets[name].score for name in (HELDOUT, *sets.tests)}
    if len(sets.shifts) > 1:
        scores[MEAN_SHIFT] = math.fsum(scores[name] for name in sets.shifts) / len(sets.shifts)
    return scores
