"""The greedy ensemble: the greedy recipe on averaged logits in place of averaged weights (paper, Table 3)."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ..errors import SoupError
from ..evaluate import HeldOut, MetricLike, as_metric
from ..names import Patterns
from ..progress import StepProgress
from .candidates import Checkpoints, duplicates, names_of, naming, nonfinite_note
from .collected import collect_logits
from .ensemble import Ensemble
from .given import Accept, best_first, is_strict, least_gain, whole_number
from .logit_cache import LogitCache
from .logit_sum import LogitSum
from .model_logits import UNSCORED, ModelLogits
from .opening import open_recipe
from .scorer import Scorer
from .soup import GreedyStep
from .steps import step_of

Select = Literal["sorted", "best"]


def greedy_ensemble(
    checkpoints: Checkpoints,
    model: nn.Module,
    heldout: HeldOut | Any,
    metric: MetricLike = "accuracy",
    *,
    select: Select = "sorted",
    replacement: bool = False,
    accept: Accept = ">=",
    min_delta: float = 0.0,
    max_ingredients: int | None = None,
    memory: int | str | None = None,
    run: str | os.PathLike[str] | None = None,
    include: Patterns = (),
    exclude: Patterns = (),
    entry: str | None = None,
    integers: str = "auto",
    progress: StepProgress | None = None,
) -> Ensemble:
    """The ensemble of those ``checkpoints`` whose logits make the average score better on ``heldout``.

    ``select="sorted"`` is the greedy soup's recipe (paper, Recipe 1): from the best single score down (ties: the given
    order), each is kept if the average with it scores at least ``min_delta`` better than without it (``accept=">"``:
    more than that). ``"best"`` adds, of all, the one with which the average scores best (ties: the given order), as
    long as that is accepted (Caruana et al. 2004, "Ensemble selection from libraries of models"). The first is the best
    single model; one that scores NaN is never kept.

    With ``replacement``, one may be added several times: ``"sorted"`` goes through all of them again, until nothing is
    kept or there are ``max_ingredients``, which must then be given; ``"best"`` likewise.

    Each checkpoint takes one pass in ``model``, which afterwards holds the last one, its training flags as before. The
    rest is done on the logits: ``memory`` is the budget of that cache in bytes (``"2GiB"``, or an integer; ``None``: no
    limit); what does not fit goes to a temporary file. Averages are ``scale * (sum + logits)``, the sum in the order of
    addition, ``scale = 1 / n``, each operation rounded to f32 (f64 for f64 logits), and scored as one batch.

    ``run`` is a directory that keeps each model's logits, so that a run that was killed goes on from there; other
    options and another metric find them there too. ``entry`` and ``integers`` are as in :func:`greedy_soup`.

    Raises :class:`SoupError` (among others :class:`IncompatibleError`) naming the checkpoint; an error of the model,
    the data or the metric is its cause.
    """
    resolved = as_metric(metric)
    rules = _Rules.checked(select, replacement, accept, min_delta, max_ingredients)
    scorer = open_recipe(
        checkpoints,
        model,
        heldout,
        UNSCORED,
        early_rejection=False,
        include=include,
        exclude=exclude,
        entry=entry,
        integers=integers,
        progress=progress,
    ).scorer
    candidates = scorer.candidates
    cache = LogitCache(len(candidates), memory)
    collect_logits(scorer, cache, resolved, run)
    started = time.perf_counter()
    with naming("scoring ensembles", "the model holds the last candidate"):
        loop = _Loop(scorer, LogitSum(cache, resolved), rules)
        loop.run()
    kept = list(dict.fromkeys(loop.kept))
    timing = {**scorer.timing, "select": time.perf_counter() - started}
    return Ensemble(
        recipe="greedy ensemble",
        ingredients=[candidates[index].name for index in kept],
        weights=[loop.kept.count(index) / len(loop.kept) for index in kept],
        score=loop.best,
        metric=resolved.name,
        direction=resolved.direction,
        trace=loop.trace,
        added=[kept.index(index) for index in loop.kept],
        models=ModelLogits([candidates[index] for index in kept], integers),
        scored_by=resolved,
        options={
            "select": select,
            "replacement": rules.replacement,
            "accept": accept,
            "min_delta": rules.min_delta,
            "max_ingredients": rules.limit,
            **names_of(candidates),
        },
        notes=scorer.notes,
        passes={"used": scorer.passes_used, "saved": 0.0},
        timing=timing,
    )


@dataclass(frozen=True)
class _Rules:
    """Who is tried, what is accepted, and when to end."""

    sorted: bool
    replacement: bool
    strict: bool
    min_delta: float
    limit: int | None

    @classmethod
    def checked(cls, select: str, replacement: bool, accept: str, min_delta: float, limit: int | None) -> _Rules:
        if select not in ("sorted", "best"):
            raise SoupError("unknown selection", found=repr(select), expected="'sorted' or 'best'")
        if limit is not None:
            limit = whole_number("max_ingredients", limit, least=1)
        elif replacement:
            raise SoupError("replacement needs max_ingredients: models that change nothing could be added for ever")
        return cls(select == "sorted", bool(replacement), is_strict(accept), least_gain(min_delta), limit)


class _Loop:
    """The recipe's loop: the ensemble so far is the sum of logits, ``best`` is the score of its average."""

    def __init__(self, scorer: Scorer, logits: LogitSum, rules: _Rules) -> None:
        self.scorer = scorer
        self.logits = logits
        self.rules = rules
        self.best: float | None = None
        self.trace: list[GreedyStep] = []
        self._duplicates = duplicates(scorer.candidates)

    @property
    def kept(self) -> list[int]:
        """The ingredients in the order of their addition, each as often as it counts."""
        return self.logits.added

    def run(self) -> None:
        singles = self.logits.with_each(range(len(self.scorer.candidates)))
        self.scorer.known = list(singles)
        order = best_first(singles, self.logits.metric)
        usable = [index for index in order if not math.isnan(singles[index])]
        if not usable:
            raise SoupError("no ensemble: every candidate scores NaN")
        self._judge(usable[0], singles[usable[0]])
        if self.rules.sorted:
            self._in_turn(usable)
        else:
            self._best_each_time(sorted(usable))
        for index in order[len(usable) :]:
            self._record(index, None, before=self.best, accepted=False, note="its own score is NaN: refused")

    def _in_turn(self, usable: Sequence[int]) -> None:
        tries = list(usable[1:])
        while True:
            before = len(self.kept)
            for index in tries:
                if not self._full():
                    self._judge(index, self.logits.with_each([index])[0])
            if not self.rules.replacement or self._full() or len(self.kept) == before:
                return
            tries = list(usable)

    def _best_each_time(self, usable: Sequence[int]) -> None:
        while not self._full():
            tries = [index for index in usable if self.rules.replacement or index not in self.kept]
            scores = self.logits.with_each(tries)
            best = best_first(scores, self.logits.metric)[:1]
            if not best or not self._judge(tries[best[0]], scores[best[0]]):
                return

    def _full(self) -> bool:
        return self.rules.limit is not None and len(self.kept) >= self.rules.limit

    def _judge(self, index: int, score: float) -> bool:
        """Keep the candidate, with which the average scores so much, or not; record it."""
        before, rules = self.best, self.rules
        accepted = self.logits.metric.accepts(score, before, strict=rules.strict, min_delta=rules.min_delta)
        if accepted:
            self.logits.add(index)
            self.best = score
        note = "the ensemble with it scores NaN: refused" if math.isnan(score) else ""
        self._record(index, score, before=before, accepted=accepted, note=note)
        return accepted

    def _record(self, index: int, score: float | None, *, before: float | None, accepted: bool, note: str) -> None:
        notes = [note]
        if index in self._duplicates:
            notes.append(f"same weights as {self.scorer.candidates[self._duplicates[index]].name}")
        notes.append(nonfinite_note(self.scorer.alone[index]))
        self.trace.append(
            step_of(
                self.scorer,
                len(self.trace),
                index,
                None,
                score=score,
                before=before,
                accepted=accepted,
                after=len(self.kept),
                notes=notes,
            )
        )
