"""The plane through three models, and what the models in it are worth: the paper's Figure 2 (section 4)."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import SoupError
from ..names import NameFilter
from ..progress import StepProgress
from ..record import read_record
from ..soups.candidates import CheckpointLike
from ..soups.soup import finite
from ..task import Task
from .geometry import Geometry, gram_geometry
from .mixtures import ScoredMixtures
from .sets import HELDOUT, TRAIN, Scores, Sets

Point = tuple[float, float]


@dataclass(frozen=True)
class Basis:
    """Coordinates in the plane through theta_0, theta_1 and theta_2, orthonormal, in the units of the weights.

    ``u1 = (theta_1 - theta_0) / |.|``, ``v = (theta_2 - theta_0) - <theta_2 - theta_0, u1> u1``, ``u2 = v / |v|``, and
    the point (a, b) is ``theta_0 + a u1 + b u2`` (Garipov et al., 2018). Only three numbers are needed for that:
    ``side`` = |theta_1 - theta_0|, ``along`` = <theta_2 - theta_0, u1> and ``across`` = |v|.
    """

    side: float
    along: float
    across: float

    @classmethod
    def of(cls, geometry: Geometry) -> Basis:
        """That of the three checkpoints in ``geometry``, theta_0 first. Raises :class:`SoupError` for three on a line,
        as far as their inner products tell."""
        side = geometry.norm(1, origin=0)
        names = geometry.names
        for i, j in ((0, 1), (0, 2), (1, 2)):
            if geometry.distance(i, j) <= geometry.distance_error(i, j):
                raise SoupError(f"no plane: it has the weights of {names[i]}", file=names[j])
        along = geometry.inner(1, 2, origin=0) / side
        squared = geometry.inner(2, 2, origin=0) - along**2
        slack = geometry.inner_error(2, 2, origin=0) + 2 * geometry.inner_error(1, 2, origin=0) * abs(along) / side
        if squared <= slack:
            raise SoupError("no plane: the three models lie on a line", file=names[2])
        return cls(side, along, math.sqrt(squared))

    @property
    def corners(self) -> list[Point]:
        """Where the three models are."""
        return [(0.0, 0.0), (self.side, 0.0), (self.along, self.across)]

    def weights(self, a: float, b: float) -> tuple[float, float, float]:
        """The mixing weights of the three models at the point (a, b); their sum is 1."""
        second = b / self.across
        first = (a - second * self.along) / self.side
        return 1.0 - first - second, first, second


@dataclass(frozen=True)
class Plane:
    """What the models at the points ``x[i], y[j]`` of a plane score, and the three models it goes through.

    ``grid[j][i]`` are the scores by set, ``corners[k]`` those of the models themselves, which are at
    ``basis.corners``. ``test`` is the first test set and ``shifts`` the others; ``learning_rates`` are as recorded.
    """

    names: list[str]
    basis: Basis
    x: list[float]
    y: list[float]
    grid: list[list[Scores]]
    corners: list[Scores]
    test: str | None
    shifts: list[str]
    learning_rates: list[float | None]
    notes: list[str] = field(default_factory=list)

    @property
    def surfaces(self) -> dict[str, list[list[float]]]:
        """What Figure 2 shows, each ``[len(y)][len(x)]``: the loss on the training data (or the held-out data), the
        error on the test set and the mean error on the shifts, as far as there are such sets."""
        return {title: [[of(scores) for scores in row] for row in self.grid] for title, of in self._measures().items()}

    def lowest(self) -> dict[str, dict[str, Any]]:
        """For each surface: its lowest value on the grid, where that is, the mixing weights there, and the values of
        the three models."""
        found = {}
        for title, of in self._measures().items():
            values = {(i, j): of(scores) for j, row in enumerate(self.grid) for i, scores in enumerate(row)}
            i, j = min(values, key=lambda at: math.inf if math.isnan(values[at]) else values[at])
            found[title] = {
                "value": values[i, j],
                "at": [self.x[i], self.y[j]],
                "weights": list(self.basis.weights(self.x[i], self.y[j])),
                "models": [of(scores) for scores in self.corners],
            }
        return found

    def to_json(self) -> dict[str, Any]:
        """All of it; numbers that are not finite as text."""
        return {
            "analysis": "plane",
            "models": self.names,
            "learning_rates": self.learning_rates,
            "coordinates": [list(point) for point in self.basis.corners],
            "x": self.x,
            "y": self.y,
            "test": self.test,
            "shifts": self.shifts,
            "lowest": {
                title: {**found, "value": finite(found["value"]), "models": [finite(v) for v in found["models"]]}
                for title, found in self.lowest().items()
            },
            "corners": [_plain(scores) for scores in self.corners],
            "grid": [[_plain(scores) for scores in row] for row in self.grid],
        }

    def _measures(self) -> dict[str, Any]:
        sets = self.corners[0]
        loss_on = TRAIN if TRAIN in sets else HELDOUT
        found: dict[str, Any] = {f"loss, {loss_on}": lambda scores: scores[loss_on]["nll"]}
        errors = [self.test] if self.test is not None else [HELDOUT]
        found[f"error, {errors[0]} (%)"] = lambda scores: _error(scores, errors)
        if self.shifts:
            found[f"mean error, {len(self.shifts)} shifts (%)"] = lambda scores: _error(scores, self.shifts)
        return found


def error_plane(
    task: Sets | str | Task,
    start: CheckpointLike,
    first: CheckpointLike,
    second: CheckpointLike,
    *,
    grid: tuple[int, int] = (11, 11),
    margin: float = 0.25,
    entry: str | None = None,
    integers: str = "auto",
    memory: str | int = "64MiB",
    threads: int | None = None,
    scores: str | os.PathLike[str] | None = None,
    progress: StepProgress | None = None,
) -> Plane:
    """Score the models in the plane through the checkpoints ``start`` (theta_0), ``first`` and ``second``.

    ``grid`` points lie evenly over the rectangle that holds the three models and ``margin`` of its sides around it.
    Each is one fused weighted sum of the three files, streamed into the task's model. All averaged tensors move, the
    running statistics of batch norms too; integers are merged by the policy ``integers``.

    Points are written to the file ``scores`` as they are done: a run that was stopped goes on there. Raises
    :class:`SoupError`, also where the three lie on a line.
    """
    if min(grid) < 2:
        raise SoupError("a grid needs two points a side", found=f"{grid[0]} x {grid[1]}")
    if not (math.isfinite(margin) and margin >= 0):
        raise SoupError("a margin is a share of the side, 0 or more", found=margin)
    sets = task if isinstance(task, Sets) else Sets(task)
    mixtures = ScoredMixtures(
        sets,
        [start, first, second],
        entry=entry,
        integers=integers,
        memory=memory,
        threads=threads,
        scores=scores,
        progress=progress,
    )
    with mixtures:
        if len(mixtures.candidates) != 3:
            raise SoupError("a plane goes through three models", found=f"{len(mixtures.candidates)} checkpoints")
        sources = mixtures.sources
        geometry = gram_geometry(
            sources, with_base=False, names=NameFilter(), exclude_norms=False, memory=memory, threads=threads
        )
        basis = Basis.of(geometry)
        xs, ys = (_spread([p[axis] for p in basis.corners], grid[axis], margin) for axis in (0, 1))
        mixtures.expect(3 + len(xs) * len(ys))
        corners = [mixtures.score({index: 1.0}) for index in range(3)]
        rows = [[mixtures.score(dict(enumerate(basis.weights(x, y)))) for x in xs] for y in ys]
        records = [read_record(checkpoint.path) for _, checkpoint in sources]
        rates = [None if r is None else r.hyperparameters.get("learning_rate") for r in records]
        return Plane(mixtures.names, basis, xs, ys, rows, corners, sets.test, sets.shifts, rates, notes=mixtures.notes)


def _spread(values: Sequence[float], count: int, margin: float) -> list[float]:
    """``count`` even steps over the values and ``margin`` of their range on both sides."""
    low, side = min(values), max(values) - min(values)
    return [low + side * (i * (1 + 2 * margin) / (count - 1) - margin) for i in range(count)]


def _error(scores: Scores, names: Sequence[str | None]) -> float:
    """In per cent."""
    errors = [100 * (1 - scores[name]["accuracy"]) for name in names if name is not None]
    return math.fsum(errors) / len(errors)


def _plain(scores: Scores) -> dict[str, dict[str, Any]]:
    return {name: {metric: finite(value) for metric, value in one.items()} for name, one in scores.items()}
