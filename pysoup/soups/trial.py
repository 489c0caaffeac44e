"""One average that was scored, and the record of it in the run's directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..errors import SoupError
from ..evaluate import Metric
from .journal import Journal


@dataclass(frozen=True)
class Trial:
    """One average, scored on the held-out set, or on as much of it as it took to refuse it.

    ``score`` is ``None`` if it was refused early; ``bound`` is then the best score that was still possible.
    ``samples`` of ``of`` held-out samples were seen. The seconds are of mixing, of scoring and, beside these, of asking
    for the next candidate's bytes. ``nonfinite`` names tensors with NaN or infinities.
    """

    score: float | None
    accepted: bool
    bound: float | None
    samples: int
    of: int
    mix_seconds: float
    score_seconds: float
    read_seconds: float = 0.0
    nonfinite: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """What an average is compared with: the ``best`` so far (``None``: there is none), and how."""

    metric: Metric
    best: float | None = None
    strict: bool = False
    min_delta: float = 0.0

    def accepts(self, score: float) -> bool:
        """Of a bound, too: where it is not accepted, no score under it is."""
        return self.metric.accepts(score, self.best, strict=self.strict, min_delta=self.min_delta)


def recall(journal: Journal | None, key: str, members: Sequence[int]) -> Trial | None:
    """The trial of the average of ``members`` that an earlier run recorded under ``key``."""
    found = None if journal is None else journal.recall(key)
    if found is None:
        return None
    if found.pop("members") != list(members):
        raise SoupError(f"another average is recorded for {key!r}; delete the directory to start anew")
    return Trial(**{**found, "nonfinite": tuple(found["nonfinite"])})


def record(journal: Journal | None, key: str, members: Sequence[int], trial: Trial) -> None:
    """Write it down, flushed, under ``key``."""
    if journal is not None:
        journal.record(key, {"members": list(members), **asdict(trial)})
