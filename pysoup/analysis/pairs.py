"""The soup of two models against their ensemble: the paper's Figure 4 (section 4)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..logits import score_ensemble, score_logits
from ..progress import StepProgress
from ..record import read_record
from ..soups.candidates import Checkpoints, is_file
from ..soups.logit_cache import LogitCache
from ..task import Task
from .mixtures import ScoredMixtures
from .pairing import Pair, choose_pairs, larger_rate
from .sets import Scores, Sets

_ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class PairScores:
    """Two checkpoints by position, and the accuracy by set of their soup and of their logit ensemble."""

    first: int
    second: int
    soup: dict[str, float]
    ensemble: dict[str, float]
    learning_rate: float | None
    """The larger one of the two."""


@dataclass(frozen=True)
class Agreement:
    """Soups and ensembles of pairs on one set (or on the mean of several): accuracies in [0, 1]."""

    pairs: int
    mean_difference: float
    """Of soup less ensemble."""
    soup_wins: int
    ties: int
    soup_beats_both: int
    """Soups that are better than each of their two models alone."""
    pearson: float | None

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


@dataclass(frozen=True)
class Pairs:
    """The accuracies of soups and ensembles of ``pairs``, and by set those of each of their models ``alone``."""

    names: list[str]
    alone: dict[int, dict[str, float]]
    test: str | None
    shifts: list[str]
    pairs: list[PairScores]
    notes: list[str] = field(default_factory=list)

    @property
    def panels(self) -> dict[str, list[str]]:
        """What Figure 4 shows side by side: a title, and the sets that accuracies are averaged over."""
        first = [self.test] if self.test is not None else list(self.pairs[0].soup)
        return {first[0]: first, **({f"mean of {len(self.shifts)} shifts": self.shifts} if self.shifts else {})}

    def values(self, sets: Sequence[str]) -> list[tuple[float, float, float]]:
        """Of each pair, the mean accuracies on these sets: of the soup, the ensemble, and the better model alone."""
        return [
            (
                _mean(pair.soup, sets),
                _mean(pair.ensemble, sets),
                max(_mean(self.alone[index], sets) for index in (pair.first, pair.second)),
            )
            for pair in self.pairs
        ]

    def agreement(self, sets: Sequence[str]) -> Agreement:
        """How soups and ensembles compare there."""
        values = self.values(sets)
        differences = [soup - ensemble for soup, ensemble, _ in values]
        return Agreement(
            pairs=len(values),
            mean_difference=math.fsum(differences) / len(values),
            soup_wins=sum(d > 0 for d in differences),
            ties=sum(d == 0 for d in differences),
            soup_beats_both=sum(soup > better for soup, _, better in values),
            pearson=_pearson([v[0] for v in values], [v[1] for v in values]),
        )

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "analysis": "pairs",
            "checkpoints": self.names,
            "alone": {str(index): found for index, found in self.alone.items()},
            "test": self.test,
            "shifts": self.shifts,
            "agreement": {title: self.agreement(sets).to_json() for title, sets in self.panels.items()},
            "pairs": [asdict(pair) for pair in self.pairs],
        }


def pair_scores(
    task: Sets | str | Task,
    checkpoints: Checkpoints,
    *,
    pairs: int | None = None,
    seed: int = 0,
    entry: str | None = None,
    integers: str = "auto",
    memory: str | int = "64MiB",
    logit_memory: str | int | None = None,
    threads: int | None = None,
    scores: str | os.PathLike[str] | None = None,
    progress: StepProgress | None = None,
) -> Pairs:
    """For pairs of ``checkpoints``: the accuracy of their average and of their logit ensemble on every set.

    ``pairs`` draws so many with ``seed``, instead of all. Each model's logits are computed once and cached in
    ``logit_memory`` bytes, or in a temporary file; ensembles are averages of two of them. ``scores`` keeps what was
    scored, as in :func:`error_plane`. Raises :class:`SoupError`.
    """
    sets = task if isinstance(task, Sets) else Sets(task)
    mixtures = ScoredMixtures(
        sets,
        checkpoints,
        entry=entry,
        integers=integers,
        memory=memory,
        threads=threads,
        scores=scores,
        progress=progress,
    )
    with mixtures:
        chosen = choose_pairs(len(mixtures.candidates), pairs, seed)
        ensembles = _Ensembles(mixtures, logit_memory)
        missing = ensembles.missing(chosen)
        mixtures.expect(len(missing) + len(chosen))
        ensembles.read(missing)
        records = [read_record(c.name) if is_file(c) else None for c in mixtures.candidates]
        found = []
        for i, j in chosen:
            soup, ensemble = mixtures.score({i: 0.5, j: 0.5}), ensembles.score(i, j)
            found.append(
                PairScores(
                    first=i,
                    second=j,
                    soup=_accuracies(soup),
                    ensemble=_accuracies(ensemble),
                    learning_rate=larger_rate(records[i], records[j]),
                )
            )
        alone = {i: _accuracies(ensembles.alone(i)) for i in sorted({i for pair in chosen for i in pair})}
        return Pairs(mixtures.names, alone, sets.test, sets.shifts, found, notes=mixtures.notes)


class _Ensembles:
    """Logit ensembles of two models, scored from cached logits."""

    def __init__(self, mixtures: ScoredMixtures, memory: str | int | None) -> None:
        self._mixtures = mixtures
        self._names = list(mixtures.sets.all)
        self._caches = {name: LogitCache(len(mixtures.candidates), memory) for name in self._names}

    def missing(self, pairs: Sequence[Pair]) -> list[int]:
        """The models whose logits are needed: those of pairs and of models that are not known yet."""
        known, key, names = self._mixtures.known, self._mixtures.key, self._names
        needed = {
            index for i, j in pairs if known.get(key({i: 0.5, j: 0.5}, _ENSEMBLE), names) is None for index in (i, j)
        }
        needed |= {index for pair in pairs for index in pair if known.get(key({index: 1.0}), names) is None}
        return sorted(needed)

    def read(self, indices: Sequence[int]) -> None:
        """A pass over every set for each of these models."""
        for index in indices:
            scores: Scores = {}
            for name, (logits, labels) in self._mixtures.logits(index).items():
                self._caches[name].put(index, logits, labels)
                scores[name] = _scores(score_logits(logits, labels, k=1))
            self._mixtures.known.put(self._mixtures.key({index: 1.0}), scores)
            self._mixtures.step(self._mixtures.names[index])

    def alone(self, index: int) -> Scores:
        """The scores of one model."""
        found = self._mixtures.known.get(self._mixtures.key({index: 1.0}), self._names)
        assert found is not None  # read() has put it there
        return found

    def score(self, i: int, j: int) -> Scores:
        """Those of the average of two models' logits."""
        key = self._mixtures.key({i: 0.5, j: 0.5}, _ENSEMBLE)
        found = self._mixtures.known.get(key, self._names)
        if found is None:
            found = {}
            for name, cache in self._caches.items():
                assert cache.labels is not None
                seen = score_ensemble(cache.logits(i), cache.logits(j), cache.labels, scale=0.5, k=1)
                found[name] = _scores(seen)
            self._mixtures.known.put(key, found)
        return found


def _scores(seen: Any) -> dict[str, float]:
    return {"accuracy": int(seen.top[1][0]) / seen.samples, "nll": float(seen.nll[0]) / seen.samples}


def _accuracies(scores: Scores) -> dict[str, float]:
    return {name: one["accuracy"] for name, one in scores.items()}


def _mean(accuracies: Mapping[str, float], sets: Sequence[str]) -> float:
    return math.fsum(accuracies[name] for name in sets) / len(sets)


def _pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    """None where one of them does not vary."""
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    dx, dy = [a - mean_x for a in x], [b - mean_y for b in y]
    scale = math.sqrt(math.fsum(a * a for a in dx) * math.fsum(b * b for b in dy))
    return math.fsum(a * b for a, b in zip(dx, dy, strict=True)) / scale if scale else None
