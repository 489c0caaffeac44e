"""Calibration of soups and ensembles as models are added (paper, section 5 and Figure B.2)."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

from .._version import __version__
from ..evaluate import MetricLike
from ..evaluate.calibration import BINS
from ..progress import StepProgress
from ..soups.candidates import Checkpoints
from ..soups.given import whole_number
from ..task import Task
from .orders import Point, by_set, first, random_positions
from .sets import HELDOUT, Sets
from .subsets import Members, Subsets
from .views import chosen
from .worth import Calibrated, Described, Worth

MEASURES = ("accuracy", "ece", "ece_width", "nll")
KINDS = (
    "soup",
    "ensemble",
    "soup of calibrated",
    "ensemble of calibrated",
    "soup, calibrated",
    "ensemble, calibrated",
)
"""As they are; of ingredients that were each calibrated before; and calibrated themselves, afterwards."""
_AFTER = ", calibrated"


@dataclass(frozen=True)
class CalibrationCurve:
    """``curves[kind][measure][set]`` is a list of points for n = 1 to the number of models.

    Temperatures are fitted on the held-out set alone. ``betas`` has those of the single models. ``reliability`` has,
    for ``best single``, ``soup`` and ``ensemble`` of all models, by set, the bins before and after scaling
    (``plain``, ``scaled``), each as a list of confidence, accuracy and count. ``kinds`` lacks the soup of calibrated
    ingredients where the last layer is not known.
    """

    checkpoints: list[str]
    metric: str
    bins: int
    seed: int
    orders: list[list[int]]
    betas: list[float | None]
    kinds: list[str]
    curves: dict[str, dict[str, dict[str, list[Point]]]]
    reliability: dict[str, dict[str, dict[str, list[list[float]]]]]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "pysoup": __version__,
            "analysis": "calibration",
            "metric": self.metric,
            "bins": self.bins,
            "seed": self.seed,
            "checkpoints": self.checkpoints,
            "orders": self.orders,
            "betas": self.betas,
            "curves": {
                kind: {
                    measure: {name: [point.to_json() for point in points] for name, points in sets.items()}
                    for measure, sets in measures.items()
                }
                for kind, measures in self.curves.items()
            },
            "reliability": self.reliability,
            "notes": self.notes,
        }


def calibration_curve(
    task: Sets | str | Task,
    checkpoints: Checkpoints,
    metric: MetricLike = "accuracy",
    *,
    orders: int = 3,
    seed: int = 0,
    head: str | None = None,
    bins: int = BINS,
    run: str | os.PathLike[str] | None = None,
    entry: str | None = None,
    integers: str = "auto",
    logit_memory: int | str | None = None,
    progress: StepProgress | None = None,
) -> CalibrationCurve:
    """Calibration error, accuracy and likelihood of the soup and the ensemble of the first 1, 2, ..., K models.

    Over random ``orders`` as in :func:`count_curve`, whose ``run``, ``logit_memory`` and cost these are: a pass over
    all sets for each model and each soup. ``head`` names the model's last layer, where that is linear (by default the
    task's ``head``, if it is): with it there is also the soup of ingredients whose logits were calibrated, by scaling
    that layer, before they were averaged; it costs no further pass. ``metric`` picks the single model that is shown in
    the reliability diagram. Raises :class:`SoupError` where the models do not give logits of classes.
    """
    orders, seed = whole_number("orders", orders, least=1), whole_number("seed", seed)
    sets = chosen(task if isinstance(task, Sets) else Sets(task))
    layer, notes = _last_layer(sets, head)
    options: dict[str, Any] = {"entry": entry, "integers": integers, "memory": logit_memory, "progress": progress}
    subsets = Subsets(sets, checkpoints, metric, head=layer, bins=bins, **options)
    count = len(subsets.candidates)
    positions = random_positions(count, orders, seed)
    kinds = [kind for kind in KINDS if layer is not None or kind != "soup of calibrated"]
    subsets.expect(count + orders * (count - 1))
    found: list[dict[str, list[Described]]] = []
    with subsets.recording(run):
        for index in range(count):
            subsets.single(index)
            subsets.step(subsets.names[index])
        for order in positions:
            steps: dict[str, list[Described]] = {kind: [] for kind in kinds if not kind.endswith(_AFTER)}
            for n in range(1, count + 1):
                for kind, described in _of(subsets, first(n, order, positions[0]), layer is not None).items():
                    steps[kind].append(described)
                if n > 1:
                    subsets.step(f"the first {n} of {count} models")
            found.append(steps)
        singles = [subsets.single(index) for index in range(count)]
    key = subsets.metric.sort_key
    best = min(range(count), key=lambda index: (key(singles[index].sets[HELDOUT].score), index))
    whole = {"best single": singles[best], "soup": found[0]["soup"][-1], "ensemble": found[0]["ensemble"][-1]}
    return CalibrationCurve(
        checkpoints=subsets.names,
        metric=subsets.metric.name,
        bins=bins,
        seed=seed,
        orders=positions,
        betas=[single.beta for single in singles],
        kinds=kinds,
        curves={
            kind: {
                measure: by_set(sets, {name: _table(found, kind, measure, name) for name in sets.all})
                for measure in MEASURES
            }
            for kind in kinds
        },
        reliability={name: _reliability(described) for name, described in whole.items()},
        notes=[*subsets.notes, *notes],
    )


def _last_layer(sets: Sets, head: str | None) -> tuple[str | None, list[str]]:
    """Its name, if it is known and can be scaled, and what to say where not."""
    from torch import nn

    name = getattr(sets.task, "head", None) if head is None else head
    if name is None:
        return None, ["there is no soup of calibrated ingredients: the name of the last layer is not given"]
    if head is None and not isinstance(dict(sets.model.named_modules()).get(name), nn.Linear):
        return None, [f"there is no soup of calibrated ingredients: the task's head, {name!r}, is not a linear layer"]
    return name, []


def _of(subsets: Subsets, members: Members, with_layer: bool) -> dict[str, Described]:
    # The pass of the scaled soup is the plain soup's, too: first.
    scaled = {"soup of calibrated": subsets.scaled_soup(members)} if with_layer else {}
    return {
        **scaled,
        "soup": subsets.soup(members),
        "ensemble": subsets.ensemble(members),
        "ensemble of calibrated": subsets.scaled_ensemble(members),
    }


def _table(found: list[dict[str, list[Described]]], kind: str, measure: str, name: str) -> list[list[float]]:
    after = kind.endswith(_AFTER)
    return [[_measure(d.sets[name], measure, after) for d in steps[kind.removesuffix(_AFTER)]] for steps in found]


def _measure(worth: Worth, measure: str, scaled: bool) -> float:
    one: Calibrated | Worth | None = worth if measure == "accuracy" else worth.scaled if scaled else worth.plain
    value = None if one is None else getattr(one, measure)
    return math.nan if value is None else float(value)


def _reliability(described: Described) -> dict[str, dict[str, list[list[float]]]]:
    """By set, then ``plain`` and ``scaled``."""
    return {
        name: {
            "plain": [] if worth.plain is None else [[b.confidence, b.accuracy, b.count] for b in worth.plain.bins],
            "scaled": [] if worth.scaled is None else [[b.confidence, b.accuracy, b.count] for b in worth.scaled.bins],
        }
        for name, worth in described.sets.items()
    }
