"""Averages over the checkpoints of one run in a live model: SWA, EMA and LAWA, chosen on held-out data where asked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..averager import Averager
from ..errors import SoupError
from ..evaluate import HeldOut, MetricLike, as_metric
from ..names import NameFilter, Patterns
from ..progress import StepProgress
from ..trajectory import Kind, Real, Whole, Window, windows
from .candidates import Checkpoints, check_pool, check_separate, names_of, nonfinite_note, open_candidates
from .snapshot import Snapshot
from .soup import Soup, finite
from .weighted import Point, WeightedScorer


@dataclass
class TrajectorySoup(Soup):
    """An average along a run. ``window`` says which; ``tried`` has every one that was scored, with its point."""

    window: Window = field(default_factory=lambda: Window("swa", ()))
    tried: list[tuple[Window, Point]] = field(default_factory=list, repr=False)

    def to_json(self) -> dict[str, Any]:
        tried = [{**window.to_json(), "score": finite(point.score)} for window, point in self.tried]
        return {**super().to_json(), "window": self.window.to_json(), "tried": tried}


def trajectory_soup(
    checkpoints: Checkpoints,
    model: nn.Module,
    heldout: HeldOut | Any | None = None,
    metric: MetricLike = "accuracy",
    *,
    kind: Kind = "swa",
    last: Whole | None = None,
    end: Whole | None = None,
    decay: Real | None = None,
    classic: bool = False,
    training: Any = None,
    include: Patterns = (),
    exclude: Patterns = (),
    entry: str | None = None,
    integers: str = "max",
    progress: StepProgress | None = None,
) -> TrajectorySoup:
    """Average ``checkpoints`` of one run, which come in the order of training, into ``model``; score it on ``heldout``.

    ``kind``, ``last``, ``end``, ``decay`` and ``classic`` are as in :func:`pysoup.trajectory.trajectory_weights`; where
    one of ``last``, ``end`` and ``decay`` is a sequence, every value of it is scored on ``heldout``, which is then
    needed, and the best one is taken (ties: the one that comes first).

    ``training`` is training data: with it the statistics of BatchNorm are estimated anew (SWA, Izmailov et al. 2018,
    arXiv 1803.05407) before every score, and are part of what :meth:`Soup.save` writes. Its batches are applied as
    those of ``heldout``; the average that is taken has the statistics that it was scored with. ``integers`` are by
    default the largest, which is those of the latest checkpoint where they count steps. The model then holds the soup.
    The other arguments and errors are as in :func:`uniform_soup`.
    """
    resolved, names = as_metric(metric), NameFilter.of(include, exclude)
    candidates, notes = open_candidates(checkpoints, model, entry, names)
    found = windows(kind, len(candidates), last=last, end=end, decay=decay, classic=classic)
    if heldout is None and len(found) > 1:
        raise SoupError("several averages to choose from need held-out data", found=f"{len(found)} averages")
    check_separate(candidates, model)
    check_pool(Averager(model, **names_of(candidates), integers=integers), candidates, running=False)
    scorer = WeightedScorer(
        model,
        candidates,
        heldout,
        resolved,
        training=training,
        integers=integers,
        progress=progress,
        evaluations=len(found),
    )
    tried: list[tuple[Window, Point]] = []
    chosen, point, kept = found[0], None, None
    for window in found if heldout is not None else ():
        one = scorer.score(window.weights, window.text)
        tried.append((window, one))
        if point is None or resolved.sort_key(one.score) < resolved.sort_key(point.score):
            chosen, point = window, one
            # Shuffled training data would give other statistics than those that were scored.
            kept = Snapshot(model) if training is not None and len(found) > 1 else None
    if point is not None and math.isnan(point.score):
        raise SoupError("nothing to choose: every average scores NaN", left="the model holds one of them")
    if kept is not None:
        kept.restore(model)
    is_there = kept is not None or len(tried) == 1
    nonfinite = point.nonfinite if point is not None and is_there else scorer.write(chosen.weights, chosen.text)
    members = [index for index, weight in enumerate(chosen.weights) if weight]
    return TrajectorySoup(
        recipe=kind,
        ingredients=[candidates[index].name for index in members],
        weights=[chosen.weights[index] for index in members],
        score=None if point is None else point.score,
        metric=None if point is None else resolved.name,
        direction=None if point is None else resolved.direction,
        trace=[],
        averager=Snapshot(model),
        options={"recalibrated": training is not None, **names_of(candidates)},
        notes=[*notes, *([nonfinite_note(nonfinite)] if nonfinite else [])],
        passes={"used": float(scorer.passes), "saved": 0.0},
        timing=scorer.timing,
        window=chosen,
        tried=tried,
    )
