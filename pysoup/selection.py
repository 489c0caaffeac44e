"""An average of files over some of their tensors: what takes part, and what becomes of the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .checkpoint import Checkpoint, TensorEntry, left_out_note
from .dtypes import DType
from .file_plan import Member
from .names import NameFilter, Rest
from .weights import Mix

Law = Callable[[str, Sequence[int]], Mix]


class Selection:
    """``inputs`` without what ``names`` leaves out, which the output lacks or, ``rest="first"``, has as the first has.

    ``checkpoints`` are what is averaged. ``output`` are what types, order and shards of the output follow. Raises
    :class:`SoupError` for patterns that match no name.
    """

    def __init__(self, names: NameFilter, rest: Rest, inputs: Sequence[Checkpoint]) -> None:
        self.checkpoints = self.output = list(inputs)
        self.members: list[Member] = []
        """The first input once more, as the only one that has the rest."""
        self.notes: list[str] = []
        if not names:
            return
        known = [name for checkpoint in inputs for name in (*checkpoint, *checkpoint.aliases)]
        names.check(known)
        self.checkpoints = self.output = [checkpoint.only(names.takes) for checkpoint in inputs]
        kept = "kept as in the first input" if rest == "first" else "not in the output"
        self.notes.append(left_out_note(names, known, kept))
        if rest == "first":
            self.output = [inputs[0], *self.checkpoints[1:]]
            self.members.append(Member(inputs[0].only(lambda name: not names.takes(name)), len(inputs)))

    def with_rest(self, names: list[str], aliases: dict[str, str]) -> tuple[list[str], dict[str, str]]:
        """All names of the output in the order of the first input, and its aliases, given those of the average."""
        for member in self.members:
            order = {name: place for place, name in enumerate((*self.output[0], *self.output[0].aliases))}
            names = sorted([*names, *member.checkpoint], key=lambda name: order.get(name, len(order)))
            aliases = {**aliases, **member.checkpoint.aliases}
        return names, aliases

    def averaged(self, names: Sequence[str], types: Sequence[DType]) -> dict[str, int]:
        """The tensors of the output that have a mean, and how many elements each has."""
        rest = {name for member in self.members for name in member.checkpoint}
        chosen = [n for n, t in zip(names, types, strict=True) if t.kind in ("float", "complex") and n not in rest]
        return {name: math.prod(self._entry(name).shape) for name in chosen}

    def _entry(self, name: str) -> TensorEntry:
        return next(c for c in self.output if name in c or name in c.aliases).entry(name)

    def law(self, law: Law) -> Law:
        """The same law, and the whole of the rest from its only holder."""
        rest = [(member.index,) for member in self.members]

        def whole(name: str, present: Sequence[int]) -> Mix:
            return Mix(tuple(present), (1.0,), 1.0) if tuple(present) in rest else law(name, present)

        return whole
