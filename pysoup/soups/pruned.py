"""The pruned soup (Dansereau et al. 2023, arXiv 2301.10092): start from all checkpoints, drop what does not help."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..errors import SoupError
from ..evaluate import HeldOut, MetricLike
from ..names import Patterns
from ..progress import StepProgress
from .candidates import Checkpoints, duplicates, nonfinite_note
from .given import Accept, Scores, best_first, is_strict, least_gain, whole_number
from .opening import open_recipe
from .scorer import Scorer
from .soup import GreedyStep, Soup
from .steps import soup_of, step_of
from .trial import Trial


def pruned_soup(
    checkpoints: Checkpoints,
    model: nn.Module,
    heldout: HeldOut | Any,
    metric: MetricLike = "accuracy",
    *,
    scores: Scores | None = None,
    accept: Accept = ">=",
    min_delta: float = 0.0,
    passes: int | None = None,
    early_rejection: bool = True,
    run: str | os.PathLike[str] | None = None,
    include: Patterns = (),
    exclude: Patterns = (),
    entry: str | None = None,
    integers: str = "auto",
    sum_memory: int | str | None = None,
    progress: StepProgress | None = None,
) -> Soup:
    """Average ``checkpoints`` in ``model``, all but those without which the average is no worse on ``heldout``.

    The candidates are taken from the worst held-out score up (of equal ones, the one given last comes first). One is
    dropped if the average of the others that are left scores at least ``min_delta`` better than with it
    (``accept=">"``: more than that); one always stays. Those that stayed are tried again, until a pass drops nothing
    or ``passes`` are done. A model whose own score is NaN is left out from the start.

    A step of the trace is ``accepted`` if its candidate was dropped; ``candidate_score`` is that of the soup without
    it, ``best_score_before`` that of the soup with it. ``ingredients`` are in the given order.

    ``scores``, ``early_rejection``, ``run``, ``entry``, ``integers``, ``sum_memory``, what the model holds afterwards
    and errors are as in :func:`greedy_soup`. Each average is made anew from its ingredients: K of them for
    each of about K scores. The soup that is left is read once more for its running sum, the only memory needed beside
    the model.
    """
    strict, min_delta = is_strict(accept), least_gain(min_delta)
    passes = None if passes is None else whole_number("passes", passes, least=1)
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
    options = {"accept": accept, "min_delta": min_delta, "passes": passes, "early_rejection": bool(early_rejection)}
    with scorer.recording(run, "pruned", {**options, "scores": known}):
        scorer.evaluations = 2 * len(scorer.candidates) + 1 if known is None else 0
        singles = scorer.singles(known)
        loop = _Loop(scorer, strict, min_delta)
        loop.run(best_first(singles, scorer.metric)[::-1], passes)
        for index in loop.kept:
            scorer.add(index)
        scorer.finish()
    return soup_of(scorer, "pruned", scorer.added, loop.best, loop.trace, options=options)


class _Loop:
    """The recipe's loop: ``kept`` are left, in the given order; ``best`` is the score of their average."""

    def __init__(self, scorer: Scorer, strict: bool, min_delta: float) -> None:
        self.scorer = scorer
        self.strict = strict
        self.min_delta = min_delta
        self.kept = list(range(len(scorer.candidates)))
        self.best: float | None = None
        self.trace: list[GreedyStep] = []
        self._duplicates = duplicates(scorer.candidates)
        self._stayed: dict[int, int] = {}
        """Candidate -> number of ingredients of the soup that it was kept in last."""

    def run(self, order: Sequence[int], passes: int | None) -> None:
        """``order``: from the worst up."""
        for index in order:
            single = self.scorer.known[index]
            if single is not None and math.isnan(single):
                self.kept.remove(index)
                self._record(index, None, dropped=True, note="its own score is NaN: left out")
        if not self.kept:
            raise SoupError("no soup: every candidate scores NaN", left="the model holds the last candidate")
        self._begin([index for index in order if index in self.kept])
        number = 0
        while passes is None or number < passes:
            before = len(self.kept)
            for index in order:
                if index in self.kept and len(self.kept) > 1 and self._stayed.get(index) != len(self.kept):
                    self._step(index)
            if len(self.kept) == before:
                break
            number += 1
        if self.best is not None and math.isnan(self.best):
            raise SoupError("no soup: the average scores NaN, whichever of the candidates is left out")

    def _begin(self, tries: Sequence[int]) -> None:
        """Order the samples, where that can pay, and score the average of all."""
        scorer = self.scorer
        single = scorer.known[tries[0]]
        if len(tries) == 1 and single is not None:
            self.best = single
            return
        ordering = scorer.ordering_passes
        pays = scorer.early_rejection and len(tries) > ordering
        scorer.evaluations = scorer.done + 1 + len(tries) + (ordering if pays else 0)
        if pays:
            scorer.prepare(tries[-1])
        self.best = scorer.subset(self.kept, "all", name="the average of all").score

    def _step(self, index: int) -> None:
        """Try to do without the candidate."""
        others = [other for other in self.kept if other != index]
        trial = self.scorer.subset(
            others,
            f"step:{len(self.trace)}",
            # Whatever is a number is better than NaN.
            best=None if self.best is None or math.isnan(self.best) else self.best,
            strict=self.strict,
            min_delta=self.min_delta,
            name=f"the soup without {self.scorer.candidates[index].name}",
        )
        before, self._stayed[index] = self.best, len(self.kept)
        if trial.accepted:
            self.kept, self.best = others, trial.score
        self._record(index, trial, dropped=trial.accepted, before=before)

    def _record(
        self, index: int, trial: Trial | None, *, dropped: bool, before: float | None = None, note: str = ""
    ) -> None:
        notes = [note]
        if index in self._duplicates:
            notes.append(f"same weights as {self.scorer.candidates[self._duplicates[index]].name}")
        if trial is not None and trial.nonfinite:
            notes.append(f"without it: {nonfinite_note(trial.nonfinite)}")
        self.trace.append(
            step_of(
                self.scorer,
                len(self.trace),
                index,
                trial,
                score=None if trial is None else trial.score,
                before=before,
                accepted=dropped,
                after=len(self.kept),
                notes=notes,
            )
        )
