"""Mixtures of checkpoints with any weights, each written into the task's model by one fused pass, and scored once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from types import TracebackType

from torch import Tensor

from ..averager import Averager
from ..checkpoint import Checkpoint
from ..errors import SoupError
from ..fingerprint import fingerprint_data, fingerprint_file
from ..mixture import Mixture
from ..progress import StepProgress
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
from .score_file import ScoreFile
from .sets import Scores, Sets

_DIGITS = 24
"""Hexadecimal digits of a fingerprint that stand for a checkpoint."""


class ScoredMixtures:
    """Mixtures of ``checkpoints`` in the model of ``sets``, which holds the last one written.

    Checkpoints are taken as recipes take them, with ``entry``, ``integers``, ``memory`` and ``threads`` as there; they
    stay in their files. ``scores`` is a file for what was scored: what is in it is not scored again, in this analysis
    or another one of the same data. A context manager, which holds the checkpoints open.
    """

    def __init__(
        self,
        sets: Sets,
        checkpoints: Checkpoints,
        *,
        entry: str | None = None,
        integers: str = "auto",
        memory: str | int = "64MiB",
        threads: int | None = None,
        scores: str | os.PathLike[str] | None = None,
        progress: StepProgress | None = None,
    ) -> None:
        self.sets = sets
        self.candidates, self.notes = open_candidates(checkpoints, sets.model, entry)
        check_separate(self.candidates, sets.model)
        check_pool(Averager(sets.model, integers=integers), self.candidates, running=False)
        self.known = ScoreFile(scores, {} if scores is None else sets.fingerprints)
        self._keys = [str(i) if scores is None else _content(c) for i, c in enumerate(self.candidates)]
        sources = [(candidate.name, candidate.source) for candidate in self.candidates]
        self._mixture = Mixture(sets.model, sources, integers=integers, memory=memory, threads=threads)
        self._policy = "" if integers == "auto" else f" integers={integers}"
        self._progress = progress
        self._done = self._total = 0

    @property
    def names(self) -> list[str]:
        """The checkpoints as they are called."""
        return [candidate.name for candidate in self.candidates]

    @property
    def sources(self) -> list[tuple[str, Checkpoint]]:
        """Each with its name. Raises :class:`SoupError` where one is not in a file: inner products are streamed."""
        for candidate in self.candidates:
            if not is_file(candidate):
                raise SoupError("angles and distances are those of files; save it first", file=candidate.name)
        return [(c.name, c.source) for c in self.candidates if isinstance(c.source, Checkpoint)]

    def __enter__(self) -> ScoredMixtures:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mixture.close()

    def expect(self, steps: int) -> None:
        """So many steps are to come: what progress is measured by."""
        self._total += steps

    def step(self, what: str) -> None:
        """One of them is done."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total, what)

    def write(self, weights: Mapping[int, float]) -> None:
        """The model becomes the sum of these checkpoints by position, each times its weight; weights as they are."""
        row = [weights.get(index, 0.0) for index in range(len(self.candidates))]
        with naming("mixing", "the model may hold part of it", file=True):
            broken = self._mixture.write(row)
        alone = [name for name, weight in zip(self.names, row, strict=True) if weight]
        note = f"{alone[0]}: {nonfinite_note(broken)}" if broken and len(alone) == 1 else ""
        if note and note not in self.notes:
            self.notes.append(note)

    def score(self, weights: Mapping[int, float], names: Iterable[str] | None = None) -> Scores:
        """What that model scores on the sets of these names (default: all): as known, or measured now."""
        names = list(self.sets.all if names is None else names)
        key = self.key(weights)
        found = self.known.get(key, names)
        if found is None:
            self.write(weights)
            found = self.sets.score(names=names)
            self.known.put(key, found)
        self.step(", ".join(self.candidates[index].name for index, weight in weights.items() if weight))
        return found

    def logits(self, index: int) -> dict[str, tuple[Tensor, Tensor]]:
        """The logits and labels of one checkpoint, alone, for every set."""
        self.write({index: 1.0})
        return self.sets.logits()

    def key(self, weights: Mapping[int, float], what: str = "mix") -> str:
        """What scores of this mixture are known by: the same for the same content, whatever the files are called."""
        parts = sorted(f"{weight!r}*{self._keys[index]}" for index, weight in weights.items() if weight)
        return f"{what} {' + '.join(parts)}{self._policy}"


def _content(candidate: Candidate) -> str:
    if isinstance(candidate.source, Checkpoint):
        return f"{fingerprint_file(candidate.source)[:_DIGITS]}{candidate.source.entry_name}"
    content = fingerprint_data(candidate.source)
    if content is None:
        what = "a checkpoint in memory that is not of tensors alone cannot be recognised in a later run; save it first"
        raise SoupError(what, file=candidate.name)
    return content[:_DIGITS]
