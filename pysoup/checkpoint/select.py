"""Checkpoints without the tensors that patterns leave out of an average."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..names import NameFilter
from .agree import align_names_to
from .checkpoint import Checkpoint
from .strict_json import clip

_SHOWN = 8
_LONGEST = 80


def select_names(
    names: NameFilter, reference: Sequence[str], checkpoints: Sequence[Checkpoint], whose: str, also: Iterable[str] = ()
) -> tuple[list[Checkpoint], list[str]]:
    """``checkpoints`` under the names of ``reference``, as :func:`align_names_to`, without what ``names`` leaves out.

    With patterns they may differ in what is left out. Every pattern has to match a name of theirs, of ``reference``,
    which is that of ``whose``, or of ``also`` (:class:`SoupError`). The notes say what was matched and left out.
    """
    aligned, notes = align_names_to(reference, checkpoints, whose, "intersection" if names else "same")
    if not names:
        return aligned, notes
    known = [*reference, *also, *(name for c in aligned for name in (*c, *c.aliases))]
    names.check(known)
    return [c.only(names.takes) for c in aligned], [*notes, left_out_note(names, known, f"{whose} keeps its own")]


def left_out_note(names: NameFilter, known: Iterable[str], rest: str) -> str:
    """Which of the ``known`` names are left out of the average, and what becomes of them, the ``rest``."""
    left = [clip(name, _LONGEST) for name in dict.fromkeys(known) if not names.takes(name)]
    more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
    return f"left out of the average ({rest}): {', '.join(left[:_SHOWN]) or 'nothing'}{more}"
