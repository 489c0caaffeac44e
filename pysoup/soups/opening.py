"""The opening of a recipe that selects: what it is given becomes a scorer, and everything is checked on the way."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from ..evaluate import HeldOut, MetricLike, as_heldout, as_metric
from ..names import NameFilter, Patterns
from ..progress import StepProgress
from .candidates import Checkpoints, check_separate, open_candidates
from .given import Order, Scores, given_order, given_scores
from .scorer import Scorer


class Opening(NamedTuple):
    """The scorer, whose notes have what is to be known of the checkpoints; the given scores in their order; the given
    order, as positions."""

    scorer: Scorer
    scores: list[float] | None
    positions: list[int] | None


def open_recipe(
    checkpoints: Checkpoints,
    model: nn.Module,
    heldout: HeldOut | Any,
    metric: MetricLike,
    *,
    scores: Scores | None = None,
    order: Order = "score",
    seed: int = 0,
    early_rejection: bool,
    include: Patterns = (),
    exclude: Patterns = (),
    entry: str | None,
    integers: str,
    progress: StepProgress | None,
    sum_memory: int | str | None = None,
) -> Opening:
    """Open the checkpoints (headers only), and check all that is given; the held-out data is not read.

    The arguments are those of :func:`greedy_soup`.
    """
    resolved = as_metric(metric)
    candidates, notes = open_candidates(checkpoints, model, entry, NameFilter.of(include, exclude))
    check_separate(candidates, model)
    known, positions = given_scores(scores, candidates), given_order(order, len(candidates), seed)
    scorer = Scorer(
        model,
        candidates,
        as_heldout(heldout),
        resolved,
        integers=integers,
        sum_memory=sum_memory,
        early_rejection=early_rejection,
        progress=progress,
    )
    scorer.notes += notes
    return Opening(scorer, known, positions)
