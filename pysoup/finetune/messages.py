"""What a sweep and its worker processes tell each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .plan import Plan


@dataclass(frozen=True)
class Job:
    """What a worker is for. ``make_start`` is True for the first one; the others find the start on disk."""

    plan: Plan
    directory: Path
    device: str
    threads: int
    overwrite: bool
    make_start: bool


class Ready(NamedTuple):
    """The task is loaded and the start is there."""

    identity: dict[str, Any]
    metric: str
    direction: str
    heldout: str | None


class Step(NamedTuple):
    """Progress of a run (None: of the start), in steps or epochs."""

    run: int | None
    done: int
    total: int


class Queued(NamedTuple):
    """The start is there: so many runs are to be made."""

    runs: int


class Done(NamedTuple):
    """A run is finished."""

    run: int
    score: float
    seconds: float


class Failed(NamedTuple):
    """The run failed, the sweep goes on."""

    run: int
    line: str
    trace: str | None = None


class Broken(NamedTuple):
    """Nothing can go on: a task that does not load, a disk that is full."""

    line: str
