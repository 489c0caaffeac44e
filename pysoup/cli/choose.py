"""Which checkpoints a command works on: what was typed, found on disk, and the best of them where that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Best(NamedTuple):
    """``--top N --by METRIC``, with ``--lowest`` and ``--scores FILE``."""

    top: int
    by: str
    lowest: bool
    scores: str | None


def choose(checkpoints: list[str], best: Best | None = None) -> tuple[list[Path], list[str]]:
    """The checkpoints that ``checkpoints`` stand for, or the ``best`` of these, and notes on what was found."""
    from ..checkpoint.find import find_checkpoints

    notes: list[str] = []
    paths = find_checkpoints(checkpoints, notes)
    if best is not None:
        from ..checkpoint.scores import select_top

        chosen = select_top(paths, best.top, best.by, best.scores, lowest=best.lowest, notes=notes)
        paths = [path for path, _ in chosen]
    return paths, notes
