"""Scores averages of candidates in the live model: the one place for mixing, evaluating and not evaluating."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

from torch import Tensor, nn

from ..averager import Averager
from ..errors import SoupError
from ..evaluate import HeldOut, Metric, run_evaluation
from ..load import average_into
from ..progress import StepProgress
from .candidates import Candidate, check_pool, is_file, names_of, naming, read_heldout
from .hardest import Hardness, arranged
from .identity import identity_of
from .journal import Journal
from .logit_cache import LogitCache
from .readahead import ReadAhead
from .recorded import recorded_margins, recorded_scores
from .trial import Rule, Trial, recall, record

_ORDER = "order"


class Scorer:
    """Averages of candidates, each written into ``model`` itself by one fused pass, and their held-out scores.

    It holds the running sum of the candidates that were added, in the accumulator's type; beside it and the model there
    is no further copy. ``heldout`` is the held-out set in its present order: as given, until :meth:`prepare` puts hard
    samples first. From then on a pass ends as soon as the average cannot be accepted.

    ``timing`` has the seconds of mixing (with the reading that was left to do), of scoring, and of reading ahead, which
    passes beside the scoring. ``passes_used`` counts passes over the held-out set, parts as parts; ``passes_saved`` how
    many more the plain recipe takes, which scores every average in full, in the given order.
    """

    def __init__(
        self,
        model: nn.Module,
        candidates: Sequence[Candidate],
        heldout: HeldOut,
        metric: Metric,
        *,
        integers: str = "auto",
        sum_memory: int | str | None = None,
        early_rejection: bool = True,
        progress: StepProgress | None = None,
    ) -> None:
        self.model = model
        self.candidates = list(candidates)
        self.heldout = heldout
        self.metric = metric
        self.early_rejection = early_rejection and metric.has_bound
        """Whether :meth:`prepare` does something."""
        self.averager = Averager(model, **names_of(self.candidates), integers=integers, sum_memory=sum_memory)
        self.added: list[int] = []
        """The candidates in the running sum, in order, each as often as it was added."""
        self.known: list[float | None] = [None] * len(self.candidates)
        """The scores of single models, where :meth:`singles` was asked for them."""
        self.alone: list[tuple[str, ...]] = [()] * len(self.candidates)
        """Tensors of single models with NaN or infinities, where these were scored."""
        self.notes: list[str] = []
        self.timing = {"read": 0.0, "mix": 0.0, "score": 0.0}
        self.passes_used = 0.0
        self.evaluations = 0
        """How many there will be, as far as the recipe knows: what progress is measured by."""
        self.done = 0
        self.ordered = False
        """Whether hard samples are first, and scores are on these batches."""
        self.cache: LogitCache | None = None
        """Where the logits of single models are kept, if the recipe needs them: see :meth:`logits`."""
        self._plain_passes = 0
        self._recalled = 0
        self._progress = progress
        self._integers = integers
        self._journal: Journal | None = None
        self._contents: list[str] = []
        self._ahead = ReadAhead()
        self._hardness = Hardness(heldout)
        self._samples: int | None = None
        self._live: list[int] | None = None
        check_pool(self.averager, self.candidates)

    @property
    def passes_saved(self) -> float:
        """May be negative: putting the samples in order takes a pass."""
        return self._plain_passes - self.passes_used

    @contextmanager
    def recording(
        self, run: str | os.PathLike[str] | None, recipe: str, options: Mapping[str, Any] | None = None
    ) -> Iterator[None]:
        """To be held during the whole recipe. What is scored is recorded in the directory ``run``, if there is one, and
        not scored again.

        ``options`` are all that decides what is scored, in plain JSON. Raises :class:`SoupError` where ``run`` is of
        another recipe, other options, checkpoints or held-out data, or in use.
        """
        read_heldout(self.heldout)  # a loader that forks workers must read before there is a thread
        try:
            if run is None:
                yield
                return
            options = {"recipe": recipe, "integers": self._integers, **(options or {})}
            identity = identity_of(self.candidates, self.heldout, self.metric, options, model=self.model)
            with Journal.open(run, identity) as self._journal:
                self._contents = identity.contents
                yield
                if self._recalled:
                    scores = "1 score was" if self._recalled == 1 else f"{self._recalled} scores were"
                    self.notes.append(f"went on with the run in {os.fspath(run)}: {scores} on record there")
        finally:
            self._ahead.stop()
            self._journal = None

    def singles(self, given: Sequence[float] | None = None) -> list[float]:
        """Each candidate's own score: ``given``, recorded beside it for this held-out data, or measured, in full."""
        if given is not None:
            self.known = list(given)
            return list(given)
        self.known = self._recorded()
        missing = [index for index, score in enumerate(self.known) if score is None]
        self._restore([f"single:{index}" for index in missing])
        for index, following in zip_longest(missing, missing[1:]):
            self._plain_passes += 1
            trial = self._watched(index, f"single:{index}", following)
            self.known[index], self.alone[index] = trial.score, trial.nonfinite
        return [math.nan if score is None else score for score in self.known]

    def logits(self, indices: Sequence[int], take: Callable[[int], None] | None = None) -> None:
        """Have :attr:`cache` hold the logits of these models alone: a pass for each that :meth:`singles` did not score.

        On the batches as they are, so before :meth:`prepare`. ``take(index)`` is called after each.
        """
        cache, journal = self.cache, self._journal
        assert cache is not None
        missing = [index for index in indices if index not in cache]
        for index, following in zip_longest(missing, missing[1:]):
            if not (journal is not None and cache.load(journal, index) and f"single:{index}" in journal):
                self._logits_of(index, following, cache)
            if take is not None:
                take(index)

    def _logits_of(self, index: int, following: int | None, cache: LogitCache) -> None:
        self._plain_passes += 1
        name, watch, save = self.candidates[index].name, cache.watch(index), self._saving(cache, index)
        trial = self._trial(
            name, f"logits:{index}", [index], self._preview(index), Rule(self.metric), following, watch, save
        )
        self.alone[index] = trial.nonfinite
        if index not in cache:
            what = "logits that belong to the recorded scores are missing; delete the directory to start anew"
            raise SoupError(what, file=None if self._journal is None else self._journal.directory)

    @property
    def ordering_passes(self) -> int:
        """What :meth:`prepare` would take: a pass, or none where :meth:`singles` scored models or found margins."""
        return int(not self._hardness.models)

    def prepare(self, first: int) -> None:
        """Put hard samples first, by the logits of the models scored by :meth:`singles`, else by those of ``first``.

        Every later score is on the new batches; none from before should be compared with it. Nothing happens without
        early rejection or for a metric without a bound.
        """
        if not self.early_rejection:
            return
        if not self._hardness.models:
            self._restore(["ordering"])
            self._watched(first, "ordering", first)
        order = None if self._journal is None else self._journal.load_array(_ORDER)
        if order is None:
            order = self._hardness.order()
            if self._journal is not None:
                self._journal.save_array(_ORDER, order)
        self._keep_arrays(_ORDER)
        self.heldout = arranged(self.heldout, order)
        self._hardness = Hardness(self.heldout)  # the logits are not needed any more
        self.ordered = True

    def add(self, index: int, weight: float = 1.0) -> None:
        """The running sum gets this candidate."""
        started = time.perf_counter()
        self.averager.add(self.candidates[index].source, weight)
        self.added.append(index)
        self.timing["mix"] += time.perf_counter() - started

    def with_candidate(
        self,
        index: int,
        key: str,
        *,
        best: float | None = None,
        strict: bool = False,
        min_delta: float = 0.0,
        following: int | None = None,
    ) -> Trial:
        """Score the average of the running sum and the candidate, until it is sure not to be accepted against ``best``.

        ``key`` is what the run's directory has it under. While it is scored, the bytes of the candidate ``following``
        are asked for. Unless the score was on record, the model then holds the average. Errors name the candidate.
        """
        self._plain_passes += self.known[index] is None or bool(self.added)
        rule = Rule(self.metric, best, strict, min_delta)
        name, members = self.candidates[index].name, [*self.added, index]
        return self._trial(name, key, members, self._preview(index), rule, following)

    def subset(
        self,
        indices: Sequence[int],
        key: str,
        *,
        best: float | None = None,
        strict: bool = False,
        min_delta: float = 0.0,
        name: str = "",
    ) -> Trial:
        """The same for the average of any candidates, apart from the running sum.

        They are read in step and written once: the bits are those of one average of them in this order.
        """
        name = name or f"the average of {len(indices)}"
        sources = [(self.candidates[index].name, self.candidates[index].source) for index in indices]

        def write() -> list[str]:
            with naming(f"loading {name}", "the model may hold part of it", file=True):
                return average_into(self.model, sources, **names_of(self.candidates), integers=self._integers)

        self._plain_passes += 1
        trial = self._trial(name, key, list(indices), write, Rule(self.metric, best, strict, min_delta))
        self._live = None  # even if these are the ones added: the averager does not know of its NaN
        return trial

    def whole(self, name: str, key: str) -> Trial:
        """Score the running sum's average, in full; the model then holds it."""

        def write() -> list[str]:
            self.averager.result(out=self.model)
            return self.averager.nonfinite

        self._plain_passes += 1
        return self._trial(name, key, list(self.added), write, Rule(self.metric))

    def finish(self) -> None:
        """The model holds the running sum's average, and ``averager.nonfinite`` is about that. All has been scored."""
        self._keep_arrays(_ORDER)
        if self._live != self.added:
            self.averager.result(out=self.model)
            self._live = list(self.added)

    def _preview(self, index: int) -> Callable[[], list[str]]:
        """Writes the average of the running sum and one candidate into the model; returns what is not finite in it."""
        candidate = self.candidates[index]

        def write() -> list[str]:
            with naming(f"loading {candidate.name}", "the model may hold part of it", file=is_file(candidate)):
                self.averager.preview(candidate.source, out=self.model)
            return self.averager.nonfinite

        return write

    def _recorded(self) -> list[float | None]:
        """Scores beside the checkpoints, the same in a run that goes on even if these records changed meanwhile."""
        known = None if self._journal is None else self._journal.recall("recorded")
        if known is None:
            scores, notes = recorded_scores(self.candidates, self.heldout, self.metric, self._contents)
            if self.early_rejection:
                self._hardness.take_margins(recorded_margins(self.candidates, scores, self.heldout))
            known = {"scores": scores, "notes": notes, "margins": self._hardness.models}
            if self._journal is not None:
                self._hardness.save(self._journal)
                self._journal.record("recorded", known)
        elif self._journal is not None and known.get("margins"):
            self._hardness.resume(self._journal, known["margins"])
        self.notes += known["notes"]
        return list(known["scores"])

    def _restore(self, keys: Sequence[str]) -> None:
        """Go on with the logits of the models that an earlier run scored under ``keys``, in that order."""
        journal = self._journal
        models = 0 if journal is None else sum(key in journal for key in keys)
        if journal is not None and models and self.early_rejection:
            self._hardness.resume(journal, self._hardness.models + models)

    def _keep_arrays(self, *names: str) -> None:
        """In the run's directory, with the cache's. Others go: also what a kill kept an earlier run from removing."""
        if self._journal is not None:
            self._journal.keep_arrays(*names, *([] if self.cache is None else self.cache.arrays))

    def _watched(self, index: int, key: str, following: int | None) -> Trial:
        """Score one candidate alone; its logits, too, then tell which samples are hard."""
        name, journal = self.candidates[index].name, self._journal
        cache = None if self.cache is None or index in self.cache else self.cache
        if not (self.early_rejection or cache is not None) or (journal is not None and key in journal):
            return self._trial(name, key, [index], self._preview(index), Rule(self.metric), following)
        watch = self._hardness.watch() if self.early_rejection else None
        if cache is not None:
            watch = cache.watch(index, beside=watch)
        keep = None if cache is None else self._saving(cache, index)

        def save() -> None:
            if keep is not None:
                keep()
            if journal is not None and self.early_rejection:
                self._hardness.save(journal)

        trial = self._trial(name, key, [index], self._preview(index), Rule(self.metric), following, watch, save)
        self._keep_arrays(*self._hardness.arrays)
        return trial

    def _saving(self, cache: LogitCache, index: int) -> Callable[[], None]:
        """Keeps the logits of a pass that is done, and writes them down."""

        def save() -> None:
            cache.keep(index)
            if self._journal is not None:
                cache.save(self._journal, index)

        return save

    def _trial(
        self,
        name: str,
        key: str,
        members: list[int],
        write: Callable[[], list[str]],
        rule: Rule,
        following: int | None = None,
        watch: Callable[[Tensor, Tensor], None] | None = None,
        save: Callable[[], None] | None = None,
    ) -> Trial:
        """One average: from the record, or written, scored and recorded (after ``save``)."""
        trial = recall(self._journal, key, members)
        if trial is not None:
            self._recalled += 1
        else:
            trial = self._measured(name, members, write, rule, following, watch)
            if save is not None:
                save()
            record(self._journal, key, members, trial)
        if trial.score is not None:
            self._samples = trial.samples
        self.passes_used += trial.samples / trial.of if trial.score is None else 1
        self.timing["read"] += trial.read_seconds
        self.timing["mix"] += trial.mix_seconds
        self.timing["score"] += trial.score_seconds
        self.done += 1
        if self._progress is not None:
            self._progress(self.done, max(self.evaluations, self.done), name)
        return trial

    def _measured(
        self,
        name: str,
        members: list[int],
        write: Callable[[], list[str]],
        rule: Rule,
        following: int | None,
        watch: Callable[[Tensor, Tensor], None] | None,
    ) -> Trial:
        started = time.perf_counter()
        self._live = None
        nonfinite = tuple(write())
        mixed, asked = time.perf_counter(), self._ahead.seconds
        stopping = self.ordered and rule.best is not None and self._samples is not None
        self._ahead.start(None if following is None else self.candidates[following].source)
        try:
            with naming(f"scoring {name}", "the model holds it"):
                result = run_evaluation(
                    self.model,
                    self.heldout,
                    self.metric,
                    stop=(lambda bound: not rule.accepts(bound)) if stopping else None,
                    samples=self._samples if stopping else None,
                    watch=watch,
                )
        finally:
            self._ahead.stop()
        self._live = members
        if stopping and result.score is not None and result.samples != self._samples:
            what = "another number of held-out samples counts with this model: early_rejection=False allows that"
            raise SoupError(what, found=result.samples, expected=self._samples)
        return Trial(
            score=result.score,
            accepted=result.score is not None and rule.accepts(result.score),
            bound=result.bound,
            samples=result.samples,
            of=result.samples if self._samples is None else self._samples,
            mix_seconds=mixed - started,
            score_seconds=result.seconds,
            read_seconds=self._ahead.seconds - asked,
            nonfinite=nonfinite,
        )
