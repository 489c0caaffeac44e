"""The greedy soup (paper, Recipe 1): add checkpoints from the best down, keep each that does not lower the score."""

from __future__ import annotations

import math
import operator
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from torch import nn

from ..averager import Averager
from ..errors import SoupError
from ..evaluate import HeldOut, Metric, MetricLike, as_heldout, as_metric
from ..progress import StepProgress
from .candidates import (
    Candidate,
    Checkpoints,
    Scorer,
    check_pool,
    check_separate,
    duplicates,
    nonfinite_note,
    open_candidates,
    soup_notes,
)
from .soup import GreedyStep, Soup

Accept = Literal[">=", ">"]
Scores = Sequence[float] | Mapping[Any, float]


def greedy_soup(
    checkpoints: Checkpoints,
    model: nn.Module,
    heldout: HeldOut | Any,
    metric: MetricLike = "accuracy",
    *,
    scores: Scores | None = None,
    accept: Accept = ">=",
    order: Literal["score", "given"] | Sequence[int] = "score",
    entry: str | None = None,
    integers: str = "auto",
    progress: StepProgress | None = None,
) -> Soup:
    """Make the greedy soup of ``checkpoints`` in ``model``, selected on ``heldout`` alone.

    The candidates are taken from the best held-out score down (ties: the given order). The first is kept; each
    further one is kept if the average of the ingredients with it scores at least as well as without it (``accept=">"``:
    better, as the official code has it). ``scores``, in the order of ``checkpoints`` or by name, are the held-out
    scores of the single models if they are known; else they are computed. ``order="given"``, or a list of positions,
    replaces the order by score. ``entry`` is taken of files that nest several models, as in
    :func:`pysoup.average_checkpoints`. ``integers`` says what becomes of integer tensors that differ, as in
    :func:`pysoup.average_state_dicts`. A model whose score is NaN is never kept.

    Candidates are written into ``model`` itself and files are streamed, so that beside the model there is one running
    sum, in the accumulator's type, and no second model. Afterwards the model holds the soup and its training flags are
    as before. On an error it holds the last candidate.

    Raises :class:`SoupError` (among others :class:`IncompatibleError`) naming the checkpoint; an error of the model,
    the data or the metric is its cause.
    """
    if accept not in (">=", ">"):
        raise SoupError("unknown accept rule", found=repr(accept), expected="'>=' or '>'")
    resolved = as_metric(metric)
    candidates, notes = open_candidates(checkpoints, list(model.state_dict()), entry)
    check_separate(candidates, model)
    singles = _given_scores(scores, candidates)
    positions = _given_order(order, len(candidates))
    score_all = positions is None and singles is None
    steps = len(candidates) - (singles is not None or score_all)  # a soup of one has the score of its ingredient
    averager = Averager(model, integers=integers)
    check_pool(averager, candidates)
    scorer = Scorer(
        model,
        averager,
        as_heldout(heldout),
        resolved,
        evaluations=steps + (len(candidates) if score_all else 0),
        progress=progress,
    )
    alone = [""] * len(candidates)
    if score_all:
        singles = []
        for position, candidate in enumerate(candidates):
            singles.append(scorer.with_candidate(candidate))
            alone[position] = nonfinite_note(averager.nonfinite)
    if positions is None:
        assert singles is not None
        positions = _by_score(singles, resolved)
    run = _Run(candidates, scorer, singles or [None] * len(candidates), alone, strict=accept == ">")
    for position in positions:
        run.step(position)
    run.finish()
    return Soup(
        recipe="greedy",
        ingredients=[candidates[position].name for position in run.kept],
        weights=[1.0 / len(run.kept)] * len(run.kept),
        score=run.best,
        metric=resolved.name,
        direction=resolved.direction,
        trace=run.trace,
        averager=averager,
        options={"accept": accept, "order": order if isinstance(order, str) else positions},
        notes=[*notes, *soup_notes(averager, [candidates[position] for position in run.kept])],
    )


class _Run:
    """The recipe's loop: the soup so far is in the averager, ``best`` is its score.

    ``nonfinite`` has a note for each candidate: of it alone, then of the soup with it.
    """

    def __init__(
        self,
        candidates: list[Candidate],
        scorer: Scorer,
        singles: Sequence[float | None],
        nonfinite: list[str],
        *,
        strict: bool,
    ) -> None:
        self.candidates = candidates
        self.scorer = scorer
        self.singles = singles
        self.strict = strict
        self.duplicates = duplicates(candidates)
        self.best: float | None = None
        self.kept: list[int] = []
        self.trace: list[GreedyStep] = []
        self.model_holds_soup = False
        self.nonfinite = nonfinite

    def step(self, position: int) -> None:
        """Try the candidate at ``position``: keep it or not, and record it."""
        started = time.perf_counter()
        candidate, single, before = self.candidates[position], self.singles[position], self.best
        score = self._score(position, single)
        accepted = score is not None and self.scorer.metric.accepts(score, before, strict=self.strict)
        if accepted:
            self.scorer.averager.add(candidate.source)
            self.kept.append(position)
            self.best = score
        elif score is not None:
            self.model_holds_soup = False
        self.trace.append(
            GreedyStep(
                step=len(self.trace),
                index=position,
                ingredient=candidate.name,
                single_score=score if single is None and before is None else single,
                candidate_score=score,
                best_score_before=before,
                accepted=accepted,
                ingredients_after=len(self.kept),
                seconds=time.perf_counter() - started,
                note=self._note(position, score),
            )
        )

    def finish(self) -> None:
        """Leave the soup in the model, also where the last candidate written was refused."""
        if not self.kept:
            raise SoupError("no soup: every candidate scores NaN (the model holds the last candidate)")
        if not self.model_holds_soup:
            self.scorer.averager.result(out=self.scorer.model)

    def _score(self, position: int, single: float | None) -> float | None:
        """The score of the soup with the candidate there; ``None`` if it is refused for its own NaN."""
        if single is not None and math.isnan(single):
            return None
        if single is not None and not self.kept:
            return single
        self.model_holds_soup = True
        score = self.scorer.with_candidate(self.candidates[position])
        self.nonfinite[position] = nonfinite_note(self.scorer.averager.nonfinite)
        return score

    def _note(self, position: int, score: float | None) -> str:
        notes = []
        if position in self.duplicates:
            notes.append(f"same weights as {self.candidates[self.duplicates[position]].name}")
        if score is None:
            notes.append("its own score is NaN: refused")
        elif math.isnan(score):
            notes.append("the soup with it scores NaN: refused")
        if score is not None and self.nonfinite[position]:
            notes.append(self.nonfinite[position])
        return "; ".join(notes)


def _by_score(singles: Sequence[float], metric: Metric) -> list[int]:
    """Positions from the best score to the worst, ties in the given order, NaN last."""
    keys = [metric.sort_key(score) for score in singles]
    return sorted(range(len(keys)), key=keys.__getitem__)


def _given_scores(scores: Scores | None, candidates: list[Candidate]) -> list[float] | None:
    if scores is None:
        return None
    if not isinstance(scores, Mapping):
        values = _floats(scores)
        if len(values) != len(candidates):
            raise SoupError("one score per checkpoint", found=len(values), expected=len(candidates))
        return values
    by_name = {os.fspath(name) if isinstance(name, os.PathLike) else str(name): score for name, score in scores.items()}
    missing = [candidate.name for candidate in candidates if candidate.name not in by_name]
    unknown = set(by_name) - {candidate.name for candidate in candidates}
    if missing or unknown:
        which = f"no score for {missing[0]}" if missing else f"a score for {min(unknown)}, which is no checkpoint"
        raise SoupError("scores must be for the checkpoints", found=which)
    return _floats(by_name[candidate.name] for candidate in candidates)


def _floats(scores: Iterable[float]) -> list[float]:
    try:
        return [float(score) for score in scores]
    except (TypeError, ValueError) as error:
        raise SoupError(f"scores must be numbers: {error}") from None


def _given_order(order: Literal["score", "given"] | Sequence[int], count: int) -> list[int] | None:
    """Positions, or ``None`` for the order by score."""
    if isinstance(order, str):
        if order not in ("score", "given"):
            raise SoupError("unknown order", found=repr(order), expected="'score', 'given' or a list of positions")
        return None if order == "score" else list(range(count))
    try:
        positions = [operator.index(position) for position in order]
    except TypeError as error:
        raise SoupError(f"order must be a list of positions: {error}") from None
    if sorted(positions) != list(range(count)):
        raise SoupError(f"order must have every position from 0 to {count - 1} once", found=positions)
    return positions
