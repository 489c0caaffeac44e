"""Soups and ensembles of any of a pool's models on every set of a task, each evaluated once and written down."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor, nn

from ..averager import Averager
from ..evaluate import Metric, MetricLike, as_metric
from ..evaluate.calibration import BINS
from ..progress import StepProgress
from ..sizes import parse_size
from ..soups.candidates import (
    Candidate,
    Checkpoints,
    check_pool,
    check_separate,
    is_file,
    naming,
    nonfinite_note,
    open_candidates,
)
from ..soups.identity import identity_of
from ..soups.journal import Journal
from ..soups.logit_cache import LogitCache, factor, mean_dtype
from .last_layer import SecondLayer
from .sets import HELDOUT, Sets
from .views import chosen
from .worth import Described, Logits, describe, score_of

Members = tuple[int, ...]
"""Positions in the pool, in the order in which they are summed."""


class Subsets:
    """What averages of weights and of logits are worth, for any members of the pool.

    ``checkpoints`` are taken as recipes take them. The logits of each model alone are kept for every set, in ``memory``
    bytes (``None``: no limit) or in a temporary file, so an ensemble takes no pass. A soup takes one pass over all
    sets; with members added at the end of those before, one model is read for it. ``head`` names the model's last
    layer, for soups of ingredients that were calibrated before. The model of ``sets`` is overwritten.

    Raises :class:`SoupError` (:class:`IncompatibleError` among others) where a checkpoint does not fit.
    """

    def __init__(
        self,
        sets: Sets,
        checkpoints: Checkpoints,
        metric: MetricLike = "accuracy",
        *,
        head: str | None = None,
        bins: int = BINS,
        entry: str | None = None,
        integers: str = "auto",
        memory: int | str | None = None,
        progress: StepProgress | None = None,
    ) -> None:
        self.sets = sets = chosen(sets)
        self.metric: Metric = as_metric(metric)
        self.bins = bins
        self.candidates, self.notes = open_candidates(checkpoints, sets.model, entry)
        check_separate(self.candidates, sets.model)
        self._chains = {what: _Chain(sets.model, self.candidates, integers) for what in ("soup", "greedy")}
        self._second = None if head is None else SecondLayer(sets.model, head, self.candidates)
        self._head = head
        self._integers = integers
        budget = None if memory is None else parse_size(memory) // len(sets.all)
        self._caches = {name: LogitCache(len(self.candidates), budget) for name in sets.all}
        self._sums: dict[str, _Sum] = {}
        self._heldout: tuple[Members, tuple[Tensor, Tensor]] | None = None
        self._known: dict[str, object] = {}
        self._journal: Journal | None = None
        self._progress = progress
        self._done = self._total = 0

    @property
    def names(self) -> list[str]:
        """The checkpoints as they are called."""
        return [candidate.name for candidate in self.candidates]

    @contextmanager
    def recording(self, run: str | os.PathLike[str] | None) -> Iterator[None]:
        """Go on with what is written down in the directory ``run``, if there is one; held during the whole analysis.

        Two analyses of the same models and sets may have one directory, one after the other. Raises
        :class:`SoupError` where it is of other models, data, metric or bins.
        """
        if run is None:
            yield
            return
        options = {"recipe": "models added", "sets": self.sets.fingerprints, "bins": self.bins}
        options["integers"] = self._integers
        identity = identity_of(self.candidates, self.sets.heldout, self.metric, options, model=self.sets.model)
        with Journal.open(run, identity) as self._journal:
            try:
                yield
            finally:
                self._journal = None

    def expect(self, steps: int) -> None:
        """So many steps are to come: what progress is measured by."""
        self._total += steps

    def step(self, what: str) -> None:
        """One of them is done."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, max(self._total, self._done), what)

    def single(self, index: int) -> Described:
        """One model alone."""
        return self._once("single", (index,), lambda: self.logits(index))

    def soup(self, members: Members, chain: str = "soup") -> Described:
        """The average of their weights; ``chain`` names the running sum that it is a step of."""
        if len(members) == 1:
            return self.single(members[0])
        return self._once("soup", members, lambda: self._soup_logits(members, chain))

    def soup_score(self, members: Members, chain: str = "soup") -> float:
        """The same by the metric, on the held-out set alone."""
        if len(members) == 1 or _key("soup", members) in self:
            return self.soup(members).sets[HELDOUT].score
        key = _key("heldout", members)
        if key not in self:
            logits = self._pass(members, chain, [HELDOUT])
            self._heldout = members, logits[HELDOUT]
            self._note(key, score_of(*logits[HELDOUT], self.metric))
        found = self._recall(key)
        assert isinstance(found, float)
        return found

    def ensemble(self, members: Members) -> Described:
        """The average of their logits."""
        if len(members) == 1:
            return self.single(members[0])
        return self._once("ensemble", members, lambda: self._mean(members, "plain"))

    def scaled_ensemble(self, members: Members) -> Described:
        """The average of their logits, each multiplied with its own temperature before."""
        return self._once("scaled ensemble", members, lambda: self._mean(members, "scaled"))

    def scaled_soup(self, members: Members) -> Described:
        """The average of their weights, those of each one's last layer multiplied with its own temperature before.

        That is averaging calibrated models. One pass gives this soup and the plain one.
        """
        second, kind = self._second, f"scaled {self._head} soup"
        assert second is not None  # head was given
        if len(members) == 1:
            return self.scaled_ensemble(members)
        if _key(kind, members) not in self:
            second.set(members, [self.beta(index) for index in members])
            with second:
                plain = self._pass(members, "soup", list(self.sets.all))
                scaled = second.take({name: logits for name, (logits, _) in plain.items()})
            self._once("soup", members, lambda: plain)
            self._once(kind, members, lambda: {name: (scaled[name], plain[name][1]) for name in plain})
        return self._described(_key(kind, members))

    def beta(self, index: int) -> float:
        """The temperature of one model alone, fitted on the held-out set; 1 where it has none."""
        beta = self.single(index).beta
        return 1.0 if beta is None else beta

    def logits(self, index: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Those of one model alone, by set; views, not to be written to."""
        if any(index not in cache for cache in self._caches.values()) and not self._load(index):
            found = self._pass((index,), "soup", list(self.sets.all))
            if broken := self._chains["soup"].nonfinite:
                self.notes.append(f"{self.names[index]}: {nonfinite_note(broken)}")
            for name, (logits, labels) in found.items():
                cache = self._caches[name]
                cache.put(index, logits, labels)
                if self._journal is not None:
                    if self._journal.load_array(_labels(self.sets, name)) is None:
                        self._journal.save_array(_labels(self.sets, name), labels)
                    self._journal.save_array(_array(self.sets, name, index), logits)
        return {name: (cache.logits(index), _given(cache.labels)) for name, cache in self._caches.items()}

    def _load(self, index: int) -> bool:
        """From the run's directory, if all of them are there."""
        if self._journal is None:
            return False
        found = {}
        for name in self.sets.all:
            logits = self._journal.load_array(_array(self.sets, name, index))
            labels = self._journal.load_array(_labels(self.sets, name))
            if logits is None or labels is None:
                return False
            found[name] = logits, labels
        for name, (logits, labels) in found.items():
            self._caches[name].put(index, logits, labels)
        return True

    def _soup_logits(self, members: Members, chain: str) -> Logits:
        """One pass, but for the held-out set where :meth:`soup_score` was asked just before."""
        known = self._heldout
        if known is None or known[0] != members:
            return self._pass(members, chain, list(self.sets.all))
        rest = [name for name in self.sets.all if name != HELDOUT]
        return {HELDOUT: known[1], **(self.sets.logits(names=rest) if rest else {})}  # the model holds it still

    def _pass(self, members: Members, chain: str, names: Sequence[str]) -> Logits:
        self._heldout = None
        self._chains[chain].write(members)
        return self.sets.logits(names=names)

    def _mean(self, members: Members, kind: str) -> Logits:
        known = self._sums.get(kind)
        if known is None or members[: len(known.members)] != known.members:
            known = self._sums[kind] = _Sum()
        for index in members[len(known.members) :]:
            known.add(index, self.logits(index), self.beta(index) if kind == "scaled" else 1.0)
        return known.mean()

    def _once(self, kind: str, members: Members, make: Callable[[], Logits]) -> Described:
        key = _key(kind, members)
        if key not in self:
            found = describe(make(), self.metric, HELDOUT, bins=self.bins)
            # Reliability diagrams are of single models and of all together.
            found = found if len(members) in (1, len(self.candidates)) else found.without_bins()
            self._note(key, found.to_json())
        return self._described(key)

    def __contains__(self, key: object) -> bool:
        return key in self._known or (self._journal is not None and key in self._journal)

    def _described(self, key: str) -> Described:
        found = self._recall(key)
        assert isinstance(found, dict)
        return Described.from_json(found)

    def _recall(self, key: str) -> object:
        if key not in self._known and self._journal is not None:
            self._known[key] = self._journal.recall(key)
        return self._known[key]

    def _note(self, key: str, value: object) -> None:
        self._known[key] = value
        if self._journal is not None:
            self._journal.record(key, value)


class _Chain:
    """A running average: members added at the end cost one reading each."""

    def __init__(self, model: nn.Module, candidates: Sequence[Candidate], integers: str) -> None:
        self._model = model
        self._candidates = candidates
        self._averager = Averager(model, integers=integers)
        self._added: Members = ()
        check_pool(self._averager, candidates)

    def write(self, members: Members) -> None:
        """The model becomes the average of these."""
        *before, last = members
        if self._added != tuple(before[: len(self._added)]):
            self._averager.reset()
            self._added = ()
        for index in before[len(self._added) :]:
            with self._naming(index):
                self._averager.add(self._candidates[index].source)
            self._added += (index,)
        # Not added yet: a greedy soup may refuse it.
        with self._naming(last):
            self._averager.preview(self._candidates[last].source, out=self._model)

    @property
    def nonfinite(self) -> list[str]:
        """Tensors with NaN or infinities in what was written last."""
        return self._averager.nonfinite

    def _naming(self, index: int) -> AbstractContextManager[None]:
        candidate = self._candidates[index]
        return naming(f"loading {candidate.name}", "the model may hold part of it", file=is_file(candidate))


class _Sum:
    """A running sum of logits, by set."""

    def __init__(self) -> None:
        self.members: Members = ()
        self._sums: dict[str, Tensor] = {}
        self._labels: dict[str, Tensor] = {}

    def add(self, index: int, logits: Logits, beta: float) -> None:
        for name, (one, labels) in logits.items():
            wide = one.to(mean_dtype(one), copy=True).mul_(beta)
            self._sums[name] = wide if name not in self._sums else self._sums[name].add_(wide)
            self._labels[name] = labels
        self.members += (index,)

    def mean(self) -> Logits:
        count = len(self.members)
        return {name: (total * factor(count, total.dtype), self._labels[name]) for name, total in self._sums.items()}


def _key(kind: str, members: Members) -> str:
    return f"{kind} {' '.join(map(str, members))}"


def _array(sets: Sets, name: str, index: int) -> str:
    return f"set-{list(sets.all).index(name)}-model-{index}"


def _labels(sets: Sets, name: str) -> str:
    return f"set-{list(sets.all).index(name)}-labels"


def _given(labels: Tensor | None) -> Tensor:
    assert labels is not None
    return labels
