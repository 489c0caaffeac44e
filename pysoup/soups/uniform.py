"""The uniform soup: the average of all checkpoints (paper, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..averager import Averager
from ..evaluate import HeldOut, MetricLike, as_heldout, as_metric
from ..names import NameFilter, Patterns
from ..progress import StepProgress
from ..weights import check_weights, mix
from .candidates import Checkpoints, check_pool, open_candidates, own_tensors, soup_notes
from .scorer import Scorer
from .soup import Soup


def uniform_soup(
    checkpoints: Checkpoints,
    model: nn.Module,
    heldout: HeldOut | Any | None = None,
    metric: MetricLike = "accuracy",
    weights: Sequence[float] | None = None,
    *,
    include: Patterns = (),
    exclude: Patterns = (),
    entry: str | None = None,
    integers: str = "auto",
    sum_memory: int | str | None = None,
    progress: StepProgress | None = None,
) -> Soup:
    """Average all checkpoints into ``model`` and score the result on ``heldout``, if given.

    ``weights`` (one per checkpoint, any finite numbers with a sum that is not zero) make it a weighted average; they
    are normalised, and a checkpoint of weight 0 is not read. ``entry`` is taken of files that nest several models, as
    in :func:`pysoup.average_checkpoints`. ``integers`` says what becomes of integer tensors that
    differ, as in :func:`pysoup.average_state_dicts`. Checkpoints in files are streamed, never loaded whole;
    ``sum_memory`` is the budget of their sum, as in :func:`greedy_soup`. The model holds the soup afterwards and its
    training flags are as before.

    Raises :class:`WeightsError`, :class:`IncompatibleError` where a checkpoint does not fit the model, and
    :class:`SoupError` for what goes wrong while scoring.
    """
    resolved = as_metric(metric)
    names = NameFilter.of(include, exclude)
    candidates, notes = open_candidates(checkpoints, model, entry, names)
    law = mix(check_weights(weights, len(candidates)), range(len(candidates)))
    members = [candidates[member] for member in law.members]
    scorer: Scorer | None = None
    if heldout is None:
        averager = Averager(model, **names.options(), integers=integers, sum_memory=sum_memory)
        check_pool(averager, members)
    else:
        scorer = Scorer(
            model, members, as_heldout(heldout), resolved, integers=integers, sum_memory=sum_memory, progress=progress
        )
        averager = scorer.averager
    for left_out in set(range(len(candidates))) - set(law.members):
        check_pool(averager, [candidates[left_out]])  # alone: what is not averaged need not agree with the others
    for index, factor in enumerate(law.factors):
        if scorer is None:
            averager.add(members[index].source, factor)
        else:
            scorer.add(index, factor)
    averager.total = law.divisor  # the factors' own sum may miss 1 by a rounding
    score = None
    if scorer is None:
        averager.result(out=model)
    else:
        scorer.evaluations = 1
        with scorer.recording(None, "uniform"):
            score = scorer.whole("the uniform soup", "uniform").score
    shares = dict(zip(law.members, law.shares, strict=True))
    return Soup(
        recipe="uniform",
        ingredients=[candidate.name for candidate in candidates],
        weights=[shares.get(index, 0.0) for index in range(len(candidates))],
        score=score,
        metric=None if score is None else resolved.name,
        direction=None if score is None else resolved.direction,
        trace=[],
        options=dict(names.options()),
        averager=averager,
        kept=own_tensors(model, members),
        notes=[*notes, *soup_notes(averager, members)],
        passes={} if scorer is None else {"used": scorer.passes_used, "saved": scorer.passes_saved},
        timing={} if scorer is None else scorer.timing,
    )
