"""The greedier soup: each step adds the checkpoint with which the soup scores best."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..errors import SoupError
from ..evaluate import HeldOut, MetricLike
from ..names import Patterns
from ..progress import StepProgress
from .candidates import Checkpoints, duplicates, nonfinite_note
from .given import Accept, Scores, best_first, is_strict, least_gain, whole_number
from .logit_cache import LogitCache
from .logit_sum import LogitSum
from .opening import open_recipe
from .scorer import Scorer
from .soup import GreedyStep, Soup
from .steps import soup_of, step_of
from .trial import Trial


def greedier_soup(
    checkpoints: Checkpoints,
    model: nn.Module,
    heldout: HeldOut | Any,
    metric: MetricLike = "accuracy",
    *,
    scores: Scores | None = None,
    accept: Accept = ">=",
    min_delta: float = 0.0,
    max_ingredients: int | None = None,
    prefilter: int | None = None,
    memory: int | str | None = None,
    early_rejection: bool = True,
    run: str | os.PathLike[str] | None = None,
    include: Patterns = (),
    exclude: Patterns = (),
    entry: str | None = None,
    integers: str = "auto",
    sum_memory: int | str | None = None,
    progress: StepProgress | None = None,
) -> Soup:
    """Make a soup of ``checkpoints`` in ``model``, of all that can be added always adding the best, by ``heldout``.

    The first ingredient is the best single model. Each round tries every other candidate with the soup so far; the one
    with which it scores best (of equal ones, the one given first) is kept if that is at least ``min_delta`` better than
    without it (``accept=">"``: more than that), else that was the last round. It ends with ``max_ingredients`` of them.
    About K scores a round, where :func:`greedy_soup` takes K in all. A model whose own score is NaN is never kept.

    ``prefilter=m``: a round only tries the m candidates that do best in an ensemble with the ingredients so far, whose
    logits have been cached. To first order around the common start, averaged logits are the logits of the averaged
    weights (Menes and Risser-Maroix 2024, "RADIN", arXiv 2401.17790). ``memory`` is the budget of that cache in bytes
    (``"2GiB"``, or an integer; ``None``: no limit); what does not fit goes to a temporary file. With ``run``, it is
    kept there too.

    ``early_rejection`` ends a score as soon as its candidate is sure not to be the one of its round; the result is the
    same. In the trace, steps have their ``round``, which ends with its best candidate, the only one that may be
    ``accepted``. ``scores``, ``run``, ``entry``, ``integers``, ``sum_memory``, what the model holds afterwards and
    errors are as in :func:`greedy_soup`.
    """
    rules = _Rules(
        is_strict(accept),
        least_gain(min_delta),
        None if max_ingredients is None else whole_number("max_ingredients", max_ingredients, least=1),
        None if prefilter is None else whole_number("prefilter", prefilter, least=1),
    )
    scorer, known, _ = open_recipe(
        checkpoints,
        model,
        heldout,
        metric,
        scores=scores,
        early_rejection=early_rejection,
        include=include,
        exclude=exclude,
        entry=entry,
        integers=integers,
        sum_memory=sum_memory,
        progress=progress,
    )
    options = {
        "accept": accept,
        "min_delta": rules.min_delta,
        "max_ingredients": rules.limit,
        "prefilter": rules.prefilter,
        "early_rejection": bool(early_rejection),
    }
    cache = LogitCache(len(scorer.candidates), memory)  # a budget that is none is an error without prefilter, too
    if prefilter is not None:
        scorer.cache = cache
    with scorer.recording(run, "greedier", {**options, "scores": known}):
        scorer.evaluations = 2 * len(scorer.candidates)
        scorer.singles(known)
        loop = _Loop(scorer, rules)
        loop.run()
        scorer.finish()
    return soup_of(scorer, "greedier", scorer.added, loop.best, loop.trace, options=options)


@dataclass(frozen=True)
class _Rules:
    """What is accepted, when to end, and how many are tried."""

    strict: bool
    min_delta: float
    limit: int | None
    prefilter: int | None


class _Loop:
    """The recipe's loop: the soup so far is the scorer's running sum, ``best`` is its score."""

    def __init__(self, scorer: Scorer, rules: _Rules) -> None:
        self.scorer = scorer
        self.rules = rules
        self.best: float | None = None
        self.trace: list[GreedyStep] = []
        self._duplicates = duplicates(scorer.candidates)
        self._logits: LogitSum | None = None

    def run(self) -> None:
        scorer = self.scorer
        singles = [math.nan if score is None else score for score in scorer.known]
        order = best_first(singles, scorer.metric)
        usable = [index for index in order if not math.isnan(singles[index])]
        refused = order[len(usable) :]
        if not usable:
            raise SoupError("no soup: every candidate scores NaN", left="the model holds the last candidate")
        usable = self._begin(usable)
        while not self._full():
            tries = self._tries(usable)
            if not tries or not self._round(tries):
                break
        for index in refused:
            self._record(index, None, accepted=False, note="its own score is NaN: refused")

    def _begin(self, usable: list[int]) -> list[int]:
        """The first ingredient; the samples in order, where that can pay: it takes passes that have to be saved.

        Returns who is left: a given score may not tell that a model scores NaN.
        """
        scorer = self.scorer
        if scorer.cache is not None:
            scorer.logits(usable)
            self._logits = LogitSum(scorer.cache, scorer.metric)
        if scorer.early_rejection and len(usable) - 1 > scorer.ordering_passes + 1 and self.rules.limit != 1:
            scorer.prepare(usable[0])
            for place, first in enumerate(usable):
                trial = scorer.with_candidate(first, f"first:{first}")
                if trial.accepted:
                    self._take(first, trial, trial.score)
                    return usable[place:]
                self._record(first, trial, accepted=False)
            raise SoupError("no soup: every candidate scores NaN", left="the model holds the last candidate")
        self._take(usable[0], None, scorer.known[usable[0]])
        return usable

    def _full(self) -> bool:
        return self.rules.limit is not None and len(self.scorer.added) >= self.rules.limit

    def _tries(self, usable: list[int]) -> list[int]:
        """Whom to try next: the best single models first, or those that do best in an ensemble with the soup.

        The sooner a good one is tried, the sooner the others are refused; the outcome does not depend on it.
        """
        left = [index for index in usable if index not in self.scorer.added]
        limit = self.rules.prefilter
        if self._logits is None or limit is None:
            return left
        left.sort()
        ranks = best_first(self._logits.with_each(left), self.scorer.metric)
        return [left[rank] for rank in ranks[:limit]]

    def _round(self, tries: list[int]) -> bool:
        """Try each with the soup so far, and keep the best one if it is accepted."""
        scorer, number = self.scorer, len(self.scorer.added)
        scorer.evaluations = max(scorer.evaluations, scorer.done + len(tries))
        trials: dict[int, Trial] = {}
        leader: int | None = None
        for place, index in enumerate(tries):
            # Who beats the leader is accepted too, since the leader is. A tie goes to the one given first.
            against = self.best if leader is None else trials[leader].score
            trials[index] = scorer.with_candidate(
                index,
                f"round:{number}:{index}",
                best=against,
                strict=self.rules.strict if leader is None else index > leader,
                min_delta=self.rules.min_delta if leader is None else 0.0,
                following=tries[place + 1] if place + 1 < len(tries) else None,
            )
            if trials[index].accepted:
                leader = index
        for index in tries:
            if index != leader:
                self._record(index, trials[index], accepted=False, round=number)
        if leader is None:
            return False
        self._take(leader, trials[leader], trials[leader].score, round=number)
        return True

    def _take(self, index: int, trial: Trial | None, score: float | None, round: int | None = None) -> None:
        before = self.best
        self.scorer.add(index)
        if self._logits is not None:
            self._logits.add(index)
        self.best = score
        self._record(index, trial, accepted=True, before=before, score=score, round=round)

    def _record(
        self,
        index: int,
        trial: Trial | None,
        *,
        accepted: bool,
        before: float | None = None,
        score: float | None = None,
        note: str = "",
        round: int | None = None,
    ) -> None:
        before = before if accepted else self.best
        score = score if trial is None else trial.score
        notes = [note]
        if index in self._duplicates:
            notes.append(f"same weights as {self.scorer.candidates[self._duplicates[index]].name}")
        if score is not None and math.isnan(score):
            notes.append("the soup with it scores NaN: refused")
        notes.append(nonfinite_note(self.scorer.alone[index] if trial is None else trial.nonfinite))
        step = step_of(
            self.scorer,
            len(self.trace),
            index,
            trial,
            score=score,
            before=before,
            accepted=accepted,
            after=len(self.scorer.added),
            notes=notes,
        )
        self.trace.append(replace(step, round=round))
