"""The angle between two fine-tunings against what averaging the two gains: the paper's Figure 3 (section 4)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import SoupError
from ..names import NameFilter, Patterns
from ..progress import StepProgress
from ..record import read_record
from ..soups.candidates import CheckpointLike, Checkpoints
from ..task import Task
from .geometry import Geometry, gram_geometry
from .mixtures import ScoredMixtures
from .pairing import (
    USES,
    Correlation,
    choose_pairs,
    correlation,
    how_many_use,
    larger_rate,
    require_scipy,
    what_differs,
)
from .sets import HELDOUT, Sets, mean_accuracy


@dataclass(frozen=True)
class PairGain:
    """Two checkpoints by position: the angle in degrees between their ways from the start (None: one did not move),
    the accuracy of their average, and the gain over the mean of their own."""

    first: int
    second: int
    angle: float | None
    soup: float
    mean: float
    group: str
    """What differs between the two, or how many of them use something."""
    learning_rate: float | None
    """The larger one."""

    @property
    def degrees(self) -> float:
        """The angle, of a pair that has one."""
        assert self.angle is not None
        return self.angle

    @property
    def gain(self) -> float:
        """``Acc(theta_1 / 2 + theta_2 / 2) - (Acc(theta_1) + Acc(theta_2)) / 2``, in [-1, 1]."""
        return self.soup - self.mean


@dataclass(frozen=True)
class Angles:
    """The angles and gains of ``pairs``, and how they go together: in all, and in each group.

    ``by`` are the hyperparameters whose use makes the groups; without any, it is what differs. Accuracies are
    unweighted means over ``sets``.
    """

    names: list[str]
    base: str
    sets: list[str]
    by: list[str]
    pairs: list[PairGain]
    correlations: dict[str, Correlation]
    """Of angle and gain: of ``"all"`` pairs, then of each group."""
    geometry: Geometry
    notes: list[str] = field(default_factory=list)

    @property
    def measured(self) -> list[PairGain]:
        """The pairs with an angle."""
        return [pair for pair in self.pairs if pair.angle is not None]

    def to_json(self) -> dict[str, Any]:
        """All of it, with the geometry."""
        return {
            "analysis": "angles",
            "checkpoints": self.names,
            "base": self.base,
            "sets": self.sets,
            "by": self.by,
            "correlations": {group: found.to_json() for group, found in self.correlations.items()},
            "pairs": [{**asdict(pair), "gain": pair.gain} for pair in self.pairs],
            "geometry": self.geometry.to_json(),
        }


def angle_gains(
    task: Sets | str | Task,
    checkpoints: Checkpoints,
    base: CheckpointLike,
    *,
    pairs: int | None = None,
    seed: int = 0,
    by: Sequence[str] = (),
    include: Patterns = (),
    exclude: Patterns = (),
    exclude_norms: bool = True,
    entry: str | None = None,
    integers: str = "auto",
    memory: str | int = "64MiB",
    threads: int | None = None,
    scores: str | os.PathLike[str] | None = None,
    progress: StepProgress | None = None,
) -> Angles:
    """For pairs of ``checkpoints`` fine-tuned from ``base``: the angle between them there, and what averaging gains.

    The accuracy is the mean over the task's test sets (held-out data where there are none), as the paper's is over
    ImageNet and its shifts. ``pairs`` draws so many with ``seed``, instead of all. ``include``, ``exclude`` and
    ``exclude_norms`` say which tensors angles are taken over, as in :func:`weight_geometry`; all are averaged.
    Groups are by what differs in the records beside the checkpoints, or how many of a pair were trained with any of the
    hyperparameters ``by`` (``["mixup", "label_smoothing"]``): where all were drawn at random, all differ. ``scores``
    keeps what was scored, as in :func:`error_plane`. Needs scipy. Raises :class:`SoupError`.
    """
    require_scipy()
    sets = task if isinstance(task, Sets) else Sets(task)
    mixtures = ScoredMixtures(
        sets,
        _with_base(checkpoints, base),
        entry=entry,
        integers=integers,
        memory=memory,
        threads=threads,
        scores=scores,
        progress=progress,
    )
    with mixtures:
        sources, names = mixtures.sources, list(sets.tests) or [HELDOUT]
        chosen = choose_pairs(len(sources) - 1, pairs, seed)
        geometry = gram_geometry(
            sources,
            with_base=True,
            names=NameFilter.of(include, exclude),
            exclude_norms=exclude_norms,
            memory=memory,
            threads=threads,
        )
        records = [read_record(checkpoint.path) for _, checkpoint in sources[:-1]]
        used = sorted({index for pair in chosen for index in pair})
        mixtures.expect(len(used) + len(chosen))
        alone = {i: mean_accuracy(mixtures.score({i: 1.0}), names) for i in used}
        found = [
            PairGain(
                first=i,
                second=j,
                angle=geometry.angle(i, j, geometry.origin),
                soup=mean_accuracy(mixtures.score({i: 0.5, j: 0.5}), names),
                mean=(alone[i] + alone[j]) / 2,
                group=how_many_use(by, records[i], records[j]) if by else what_differs(records[i], records[j]),
                learning_rate=larger_rate(records[i], records[j]),
            )
            for i, j in chosen
        ]
        return Angles(
            names=mixtures.names[:-1],
            base=mixtures.names[-1],
            sets=names,
            by=list(by),
            pairs=found,
            correlations=_correlations([pair for pair in found if pair.angle is not None]),
            geometry=geometry,
            notes=mixtures.notes,
        )


def _correlations(pairs: Sequence[PairGain]) -> dict[str, Correlation]:
    """Of all pairs with an angle, and where there are several groups, of each."""
    groups = group_order(pairs)
    found = {}
    for group in ["all", *(groups if len(groups) > 1 else [])]:
        members = [pair for pair in pairs if group in ("all", pair.group)]
        angles = {(pair.first, pair.second): pair.degrees for pair in members}
        found[group] = correlation(angles, {(pair.first, pair.second): pair.gain for pair in members})
    return found


def group_order(pairs: Sequence[PairGain]) -> list[str]:
    """The groups there are: by the number that use something, else by name."""
    found = {pair.group for pair in pairs}
    return [group for group in USES if group in found] + sorted(found - {*USES})


def _with_base(checkpoints: Checkpoints, base: CheckpointLike) -> Checkpoints:
    """The checkpoints, the base last."""
    if isinstance(checkpoints, (str, os.PathLike)):
        return [checkpoints, base]
    if isinstance(checkpoints, Sequence):
        return [*checkpoints, base]
    raise SoupError("checkpoints must be a list", found=type(checkpoints).__name__)
