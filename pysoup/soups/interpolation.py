"""Interpolation between two models: WiSE-FT, PAINT, accuracy along the path, and the error barrier."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from ..averager import Averager
from ..errors import SoupError, WeightsError
from ..evaluate import HeldOut, Metric, MetricLike, as_metric
from ..names import NameFilter, Patterns
from ..progress import StepProgress
from .candidates import (
    Candidate,
    CheckpointLike,
    check_pool,
    check_separate,
    names_of,
    nonfinite_note,
    open_candidates,
)
from .identity import identity_of
from .journal import Journal
from .snapshot import Snapshot
from .soup import Soup, finite
from .weighted import Point, WeightedScorer

ALPHAS = tuple(number / 10 for number in range(11))


@dataclass(frozen=True)
class InterpolationPoint(Point):
    """A point of the path: ``(1 - alpha) theta_0 + alpha theta_1``, and what it scored."""

    alpha: float = math.nan

    def to_json(self) -> dict[str, Any]:
        return {"alpha": self.alpha, **super().to_json()}


@dataclass
class Interpolation(Soup):
    """The soup at the ``alpha`` that was chosen, and the whole path: ``points`` by ascending alpha.

    ``barrier`` is the most by which a point between the ends is worse than the straight line between these, in the
    metric's unit, and ``loss_barrier`` the same of the loss; 0 where none is. For accuracy it is the error barrier
    ``max_a [err(a) - ((1 - a) err(0) + a err(1))]`` on the held-out data.
    """

    alpha: float = math.nan
    points: list[InterpolationPoint] = field(default_factory=list)
    barrier: float = math.nan
    loss_barrier: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            **super().to_json(),
            "alpha": self.alpha,
            "barrier": finite(self.barrier),
            "loss_barrier": finite(self.loss_barrier),
            "points": [point.to_json() for point in self.points],
        }

    def _provenance(self) -> dict[str, str]:
        return {**super()._provenance(), "pysoup.alpha": repr(self.alpha)}


def interpolate(
    theta0: CheckpointLike,
    theta1: CheckpointLike | Soup,
    model: nn.Module,
    heldout: HeldOut | Any,
    metric: MetricLike = "accuracy",
    *,
    alphas: Sequence[float] = ALPHAS,
    also: Mapping[str, HeldOut | Any] | None = None,
    tests: Mapping[str, HeldOut | Any] | None = None,
    run: str | os.PathLike[str] | None = None,
    include: Patterns = (),
    exclude: Patterns = (),
    entry: str | None = None,
    integers: str = "auto",
    progress: StepProgress | None = None,
) -> Interpolation:
    """Score ``(1 - a) theta0 + a theta1`` on ``heldout`` for each of ``alphas``; ``model`` then holds the best.

    With the initialisation as ``theta0`` and a fine-tuned model, or a soup of several, as ``theta1`` this is WiSE-FT
    (Wortsman et al. 2022, arXiv 2109.01903; paper, appendix D). With held-out sets of further tasks in ``also`` it is
    PAINT (Ilharco et al. 2022, arXiv 2208.05592): what chooses is the unweighted mean of the scores over all sets. Of
    equal scores, the alpha nearest to 0.5 is taken, then the lower one; NaN is never taken. ``tests`` are scored at
    every point and reported, and choose nothing.

    The ends are always scored, since the barrier is relative to them; they can be chosen only where 0 or 1 is among
    ``alphas``. Values outside of [0, 1] extrapolate, and have no part in the barrier. Each point is one fused pass over
    both models, with the bits of :func:`pysoup.average_checkpoints` with the weights ``[1 - a, a]``.

    Both ends are paths, checkpoints or state dictionaries; ``theta1`` also a :class:`Soup`. ``run`` is a directory that
    takes down every score: started again after a kill, the same or other alphas go on from there. ``include``,
    ``exclude``, ``entry``, ``integers`` and errors are as in :func:`greedy_soup`.
    """
    resolved, asked = as_metric(metric), _checked(alphas)
    ends = {_named(theta0, "theta0"): theta0, _named(theta1, "theta1", theta0): _source(theta1)}
    names = NameFilter.of(include, exclude)
    candidates, notes = open_candidates(ends, model, entry, names)
    check_separate(candidates, model)
    check_pool(Averager(model, **names.options(), integers=integers), candidates, running=False)
    wanted = sorted({*asked, 0.0, 1.0})
    scorer = WeightedScorer(
        model,
        candidates,
        heldout,
        resolved,
        also=also,
        tests=tests,
        integers=integers,
        progress=progress,
        evaluations=len(wanted),
    )
    points = []
    with ExitStack() as stack:
        if run is not None:
            scorer.journal = stack.enter_context(_journal(run, scorer, candidates, resolved, model, integers))
        for alpha in wanted:
            point = scorer.score((1.0 - alpha, alpha), f"alpha {alpha:g}")
            points.append(InterpolationPoint(**{**_fields(point), "alpha": alpha}))
    chosen = _best([point for point in points if point.alpha in asked], resolved)
    nonfinite = scorer.write(chosen.weights, f"alpha {chosen.alpha:g}")
    notes += [nonfinite_note(nonfinite)] if nonfinite else []
    losses = [point.loss for point in points]
    return Interpolation(
        recipe="interpolated",
        ingredients=[candidate.name for candidate in candidates],
        weights=list(chosen.weights),
        score=chosen.score,
        metric=resolved.name,
        direction=resolved.direction,
        trace=[],
        averager=Snapshot(model),
        options={"alphas": asked, "sets": list(scorer.sets), **names_of(candidates)},
        notes=notes,
        passes={"used": float(scorer.passes), "saved": 0.0},
        timing=scorer.timing,
        alpha=chosen.alpha,
        points=points,
        barrier=barrier(points, [_cost(point.score, resolved) for point in points]),
        loss_barrier=None if None in losses else barrier(points, [loss for loss in losses if loss is not None]),
    )


def barrier(points: Sequence[InterpolationPoint], costs: Sequence[float]) -> float:
    """``max_a [cost(a) - ((1 - a) cost(0) + a cost(1))]`` over the points with alpha in [0, 1]; at the ends it is 0.

    Lower costs are better. NaN where one of them is.
    """
    path = {point.alpha: cost for point, cost in zip(points, costs, strict=True) if 0 <= point.alpha <= 1}
    if any(map(math.isnan, path.values())):
        return math.nan
    return max(cost - ((1 - a) * path[0.0] + a * path[1.0]) if 0 < a < 1 else 0.0 for a, cost in path.items())


def _cost(score: float, metric: Metric) -> float:
    return -score if metric.direction == "max" else score


def _fields(point: Point) -> dict[str, Any]:
    return {one.name: getattr(point, one.name) for one in fields(point)}


def _best(points: Sequence[InterpolationPoint], metric: Metric) -> InterpolationPoint:
    best = min(points, key=lambda point: (*metric.sort_key(point.score), abs(point.alpha - 0.5), point.alpha))
    if math.isnan(best.score):
        raise SoupError("nothing to choose: every point scores NaN", left="the model holds one of them")
    return best


def _checked(alphas: Sequence[float]) -> list[float]:
    try:
        values = sorted({float(alpha) for alpha in alphas})
    except (TypeError, ValueError):
        raise WeightsError("alphas must be numbers", found=repr(alphas)) from None
    if not values:
        raise WeightsError("no alphas given")
    if not all(map(math.isfinite, values)):
        raise WeightsError("alphas must be finite", found=values)
    return values


def _named(end: Any, default: str, other: Any = None) -> str:
    """What errors call it; the same path twice needs two names."""
    name = os.fspath(end) if isinstance(end, (str, os.PathLike)) else default
    path = getattr(end, "path", None)
    name = name if path is None else os.fspath(path)
    return f"{name} (theta1)" if other is not None and name == _named(other, "theta0") else name


def _source(end: CheckpointLike | Soup) -> CheckpointLike:
    return end.state_dict() if isinstance(end, Soup) else end


def _journal(
    run: str | os.PathLike[str],
    scorer: WeightedScorer,
    candidates: Sequence[Candidate],
    metric: Metric,
    model: nn.Module,
    integers: str,
) -> Journal:
    """The record of this path; alphas are no part of what makes it the same one."""
    others = {name: data.fingerprint for name, data in {**scorer.sets, **scorer.tests}.items()}
    options = {"recipe": "interpolate", "integers": integers, "sets": others}
    return Journal.open(run, identity_of(candidates, next(iter(scorer.sets.values())), metric, options, model=model))
