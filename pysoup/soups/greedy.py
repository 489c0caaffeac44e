"""The greedy soup (paper, Recipe 1): add checkpoints from the best down, keep each that does not lower the score."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..errors import SoupError
from ..evaluate import HeldOut, MetricLike
from ..names import Patterns
from ..progress import StepProgress
from .candidates import Checkpoints, duplicates, nonfinite_note
from .given import Accept, Order, Scores, best_first, is_strict, least_gain, whole_number
from .opening import open_recipe
from .scorer import Scorer
from .soup import GreedyStep, Soup
from .steps import soup_of, step_of
from .trial import Trial


def greedy_soup(
    checkpoints: Checkpoints,
    model: nn.Module,
    heldout: HeldOut | Any,
    metric: MetricLike = "accuracy",
    *,
    scores: Scores | None = None,
    accept: Accept = ">=",
    min_delta: float = 0.0,
    order: Order = "score",
    seed: int = 0,
    max_ingredients: int | None = None,
    passes: int = 1,
    replacement: bool = False,
    early_rejection: bool = True,
    run: str | os.PathLike[str] | None = None,
    include: Patterns = (),
    exclude: Patterns = (),
    entry: str | None = None,
    integers: str = "auto",
    sum_memory: int | str | None = None,
    progress: StepProgress | None = None,
) -> Soup:
    """Make the greedy soup of ``checkpoints`` in ``model``, selected on ``heldout`` alone.

    The candidates are taken from the best held-out score down (ties: the given order). The first is kept; each
    further one is kept if the average of the ingredients with it scores at least ``min_delta`` better than without it
    (``accept=">"``: more than that, as the official code has it). It ends with ``max_ingredients`` of them. With
    ``passes``, refused candidates are tried again, as long as the pass before kept something; with ``replacement``
    all of them are, so that one may count several times in the average. ``order="given"``, ``"random"`` (by ``seed``)
    or a list of positions replaces the order by score.

    ``scores``, in the order of ``checkpoints`` or by name, are the held-out scores of the single models if they are
    known. Else they are those recorded beside the checkpoints by their training, if the fingerprints of the held-out
    data and of the weights agree, or they are measured. A model whose score is NaN is never kept.

    With ``early_rejection`` the held-out samples are put in order, the hardest first, cut into new batches, and a
    candidate is refused as soon as its errors so far rule out that it is accepted. Ingredients, their order and every
    score of an accepted soup are those of the same recipe in full on these batches. It is left out for metrics
    without a bound (macro-F1, Matthews, functions), and where there are too few candidates for it to pay.

    ``run`` is a directory that takes down every score at once: started again after a kill, the recipe goes on from
    there to the same result. ``entry`` is taken of files that nest several models, as in
    :func:`pysoup.average_checkpoints`. ``integers`` says what becomes of integer tensors that differ, as in
    :func:`pysoup.average_state_dicts`.

    Candidates are written into ``model`` itself and files are streamed, so that beside the model there is one running
    sum, in the accumulator's type, and no second model. The sum is on the model's device where there is room, else in
    host memory up to ``sum_memory`` bytes (``"2GiB"``, or an integer; ``None``: half of what is free), else in a
    temporary file; nothing that is chosen or written depends on it. Afterwards the model holds the soup and its
    training flags are as before. On an error it holds the last candidate.

    Raises :class:`SoupError` (among others :class:`IncompatibleError`) naming the checkpoint; an error of the model,
    the data or the metric is its cause.
    """
    rules = _Rules.checked(accept, min_delta, max_ingredients, passes, replacement)
    scorer, known, positions = open_recipe(
        checkpoints,
        model,
        heldout,
        metric,
        scores=scores,
        order=order,
        seed=seed,
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
        "order": order if isinstance(order, str) else positions,
        **({"seed": whole_number("seed", seed)} if isinstance(order, str) and order == "random" else {}),
        "max_ingredients": rules.limit,
        "passes": rules.passes,
        "replacement": rules.replacement,
        "early_rejection": bool(early_rejection),
    }
    with scorer.recording(run, "greedy", {**options, "positions": positions, "scores": known}):
        if positions is None or known is not None:
            if known is None:
                count = len(scorer.candidates)
                scorer.evaluations = count + _planned(scorer, count, known=True, ordering=0)[1]
            singles = scorer.singles(known)
            positions = best_first(singles, scorer.metric) if positions is None else positions
        loop = _Loop(scorer, rules)
        loop.run(positions)
        scorer.finish()
    scorer.notes += loop.notes
    return soup_of(scorer, "greedy", scorer.added, loop.best, loop.trace, options=options)


@dataclass(frozen=True)
class _Rules:
    """What is accepted, and when to end."""

    strict: bool
    min_delta: float
    limit: int | None
    passes: int
    replacement: bool

    @classmethod
    def checked(cls, accept: str, min_delta: float, limit: int | None, passes: int, replacement: bool) -> _Rules:
        strict = is_strict(accept)
        min_delta = least_gain(min_delta)
        if limit is not None:
            limit = whole_number("max_ingredients", limit, least=1)
        passes = whole_number("passes", passes, least=1)
        if replacement and passes == 1:
            raise SoupError("replacement needs further passes", found="passes=1", expected="passes of 2 or more")
        return cls(strict, min_delta, limit, passes, bool(replacement))


class _Loop:
    """The recipe's loop: the soup so far is the scorer's running sum, ``best`` is its score."""

    def __init__(self, scorer: Scorer, rules: _Rules) -> None:
        self.scorer = scorer
        self.rules = rules
        self.duplicates = duplicates(scorer.candidates)
        self.best: float | None = None
        self.trace: list[GreedyStep] = []
        self.notes: list[str] = []
        self._refused_by: dict[int, int] = {}
        """Candidate -> number of ingredients of the soup that refused it last."""

    @property
    def kept(self) -> list[int]:
        """The ingredients in the order of their addition, each as often as it counts."""
        return self.scorer.added

    def run(self, order: Sequence[int]) -> None:
        self._begin(order)
        for number in range(self.rules.passes):
            before = len(self.kept)
            again = number > 0 and not self.rules.replacement
            self._pass([position for position in order if not (again and position in self.kept)], first=number == 0)
            if self._full() or len(self.kept) == before:
                break
        if not self.kept:
            raise SoupError("no soup: every candidate scores NaN", left="the model holds the last candidate")
        untried = set(order) - {step.index for step in self.trace}
        if untried:
            count = f"{len(untried)} checkpoint{'s' if len(untried) > 1 else ''}"
            self.notes.append(f"ended with max_ingredients={self.rules.limit}: {count} not tried")

    def _begin(self, order: Sequence[int]) -> None:
        """Order the samples, where that can pay: it takes passes that early rejection has to save."""
        scorer = self.scorer
        tries = [position for position in order if not self._is_nan(position)]
        if not tries:
            return
        known = scorer.known[tries[0]] is not None
        ordered, evaluations = _planned(scorer, len(tries), known=known, ordering=scorer.ordering_passes)
        scorer.evaluations = scorer.done + evaluations
        if ordered:
            scorer.prepare(tries[0])

    def _pass(self, tries: list[int], *, first: bool) -> None:
        for place, position in enumerate(tries):
            if self._full():
                return
            if first or self._may_change(position):
                following = next((p for p in tries[place + 1 :] if self._may_change(p)), None)
                self._step(position, following)

    def _may_change(self, position: int) -> bool:
        """Not if it scores NaN, or was refused by this very soup."""
        return not self._is_nan(position) and self._refused_by.get(position) != len(self.kept)

    def _full(self) -> bool:
        return self.rules.limit is not None and len(self.kept) >= self.rules.limit

    def _is_nan(self, position: int) -> bool:
        single = self.scorer.known[position]
        return single is not None and math.isnan(single)

    def _step(self, position: int, following: int | None) -> None:
        """Try the candidate at ``position``: keep it or not, and record it."""
        single, before = self.scorer.known[position], self.best
        trial, score, accepted = self._try(position, single, following)
        if accepted:
            self.scorer.add(position)
            self.best = score
        else:
            self._refused_by[position] = len(self.kept)
        step = step_of(
            self.scorer,
            len(self.trace),
            position,
            trial,
            score=score,
            before=before,
            accepted=accepted,
            after=len(self.kept),
            notes=self._notes(position, trial, score),
        )
        self.trace.append(replace(step, single_score=score) if single is None and before is None else step)

    def _try(
        self, position: int, single: float | None, following: int | None
    ) -> tuple[Trial | None, float | None, bool]:
        """The trial of the soup with the candidate, if there had to be one, its score, and whether it is accepted."""
        if self._is_nan(position):
            return None, None, False
        if single is not None and not self.kept and not self.scorer.ordered:
            return None, single, True
        trial = self.scorer.with_candidate(
            position,
            f"step:{len(self.trace)}",
            best=self.best,
            strict=self.rules.strict,
            min_delta=self.rules.min_delta,
            following=following,
        )
        return trial, trial.score, trial.accepted

    def _notes(self, position: int, trial: Trial | None, score: float | None) -> list[str]:
        notes = []
        if position in self.duplicates:
            notes.append(f"same weights as {self.scorer.candidates[self.duplicates[position]].name}")
        if self._is_nan(position):
            notes.append("its own score is NaN: refused")
        elif score is not None and math.isnan(score):
            notes.append("the soup with it scores NaN: refused")
        nonfinite = self.scorer.alone[position] if trial is None else trial.nonfinite
        if not self._is_nan(position):
            notes.append(nonfinite_note(nonfinite))
        return notes


def _planned(scorer: Scorer, tries: int, *, known: bool, ordering: int) -> tuple[bool, int]:
    """Whether to put hard samples first, for as many ``tries``, and the evaluations of the first pass.

    It takes ``ordering`` passes, and one if the first one's score is ``known``, but on other batches: only further
    candidates that are refused can make up for that.
    """
    plain, extra = tries - known, ordering + known
    pays = scorer.early_rejection and tries - 1 > extra
    return pays, plain + extra if pays else plain
