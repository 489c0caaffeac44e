"""What an earlier sweep left of a run: finished, failed, missing, or somebody else's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from ..errors import OutputError, SoupError
from ..record import Record, read_failure, read_record
from .hyperparameters import Hyperparameters
from .layout import Snapshot


class State(Enum):
    """``OTHER``: finished with other hyperparameters, data or start."""

    MISSING = "missing"
    DONE = "done"
    FAILED = "failed"
    OTHER = "other"


def state_of(wanted: Sequence[Snapshot], hp: Hyperparameters, identity: Mapping[str, Any]) -> State:
    """The state of the run that should leave ``wanted``, whose last one is the ingredient.

    A run counts as finished only with all of its files; one that lacks some (a new average is asked for) is made again.
    """
    last = wanted[-1].path
    record = read_record(last)
    if record is not None:
        if not _same(record.hyperparameters, record.details, hp, identity):
            return State.OTHER
        return State.DONE if all(_is_finished(s.path, hp, identity) for s in wanted) else State.MISSING
    failure = read_failure(last)
    if failure is not None and _same(failure.get("hyperparameters"), failure, hp, identity):
        return State.FAILED
    return State.MISSING


def made_by_another(
    wanted: Sequence[Snapshot], hp: Hyperparameters, identity: Mapping[str, Any], way: str
) -> OutputError:
    """The error for a run in the state ``OTHER``, with the first thing that differs; ``way`` says what to do."""
    path = wanted[-1].path
    record = read_record(path)
    known = {} if record is None else {**record.hyperparameters, **record.details.get("identity", {})}
    expected = {**hp.to_json(), **identity}
    differing = [key for key in expected if known.get(key) != expected[key]]
    first = differing[0] if differing else "?"
    return OutputError(
        f"made by another sweep ({first} differs); another directory or {way}",
        file=path,
        found=known.get(first),
        expected=expected.get(first),
    )


def _is_finished(path: Path, hp: Hyperparameters, identity: Mapping[str, Any]) -> bool:
    record = read_record(path)
    return (
        record is not None and _same(record.hyperparameters, record.details, hp, identity) and _is_whole(path, record)
    )


def _is_whole(path: Path, record: Record) -> bool:
    try:
        return path.stat().st_size == record.details.get("bytes")
    except OSError:
        return False


def _same(known: Any, details: Mapping[str, Any], hp: Hyperparameters, identity: Mapping[str, Any]) -> bool:
    if details.get("identity") != dict(identity) or not isinstance(known, Mapping):
        return False
    try:
        # Read, not compared as text: a field that came later has its default in an older record.
        return Hyperparameters.from_json(known) == hp
    except SoupError:
        return False
