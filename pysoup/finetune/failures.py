"""What is kept of a run that failed."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

from ..errors import SoupError
from ..origin import described
from .hyperparameters import Hyperparameters


def one_line(error: BaseException) -> str:
    """What went wrong, as a line for a record; of an error that nobody raised on purpose, also where in the task."""
    if isinstance(error, SoupError):
        return str(error)
    return str(SoupError(described(error)))


def trace_of(error: BaseException) -> str | None:
    """Where it went wrong, for an error that nobody raised on purpose: most likely one in the task's own code."""
    if isinstance(error, SoupError):
        return None
    return "".join(traceback.format_exception(error))


def failure_details(
    run: int, hp: Hyperparameters, identity: Mapping[str, Any], trace: str | None = None
) -> dict[str, Any]:
    """What the record of a failed run holds besides the reason."""
    details = {"run": run, "hyperparameters": hp.to_json(), "seed": hp.seed, "identity": dict(identity)}
    return details if trace is None else {**details, "traceback": trace}
