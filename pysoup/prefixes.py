"""Tensor names that differ only by what wraps the model: DistributedDataParallel, torch.compile, FSDP.

Recognised by rule and reported, never guessed: names are matched only where taking the wrappers out makes them equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_EVERYWHERE = "module."
"""DistributedDataParallel and DataParallel put it before every name; a submodule called so has names beside it."""
_ANYWHERE = re.compile(r"(?:(?<=\.)|^)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_ORIGINS = {
    "module": "DistributedDataParallel",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}


class Unwrapped:
    """``names`` without wrappers: ``plain`` in the same order, ``wrappers`` that were taken out, outermost first."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)
        self.plain = self.names
        found: dict[str, None] = {}
        while True:
            if self.plain and all(name.startswith(_EVERYWHERE) for name in self.plain):
                found["module"] = None
                self.plain = [name.removeprefix(_EVERYWHERE) for name in self.plain]
                continue
            inner = [_ANYWHERE.findall(name) for name in self.plain]
            if not any(inner):
                break
            found.update(dict.fromkeys(wrapper for wrappers in inner for wrapper in wrappers))
            self.plain = [_ANYWHERE.sub("", name) for name in self.plain]
        self.wrappers = tuple(found)

    @property
    def is_distinct(self) -> bool:
        """Whether all names are still different."""
        return len(set(self.plain)) == len(self.plain)


def matched(
    names: Sequence[str], reference: Sequence[str], *, all_of_them: bool = True
) -> tuple[dict[str, str], str] | None:
    """``names`` (those that change) -> what ``reference`` calls them, and a text that says so; None where no match.

    There is a match only if the two differ, and are the same set of names without their wrappers; or, unless
    ``all_of_them`` need be, if they have no name in common with them and some without.
    """
    if not names or not reference or set(names) == set(reference):
        return None
    ours, theirs = Unwrapped(names), Unwrapped(reference)
    if ours.wrappers == theirs.wrappers or not (ours.is_distinct and theirs.is_distinct):
        return None
    called = dict(zip(theirs.plain, theirs.names, strict=True))
    common = called.keys() & set(ours.plain)
    if all_of_them:
        if len(common) < max(len(called), len(ours.plain)):
            return None
    elif not common or set(names) & set(reference):
        return None
    wrapper = _EVERYWHERE if theirs.wrappers[:1] == ("module",) else ""
    renamed = {name: called.get(plain, wrapper + plain) for name, plain in zip(ours.names, ours.plain, strict=True)}
    parts = [f"{verb} {described(w)}" for verb, w in (("has", ours.wrappers), ("lacks", theirs.wrappers)) if w]
    return {name: new for name, new in renamed.items() if name != new}, " and ".join(parts)


def described(wrappers: Iterable[str]) -> str:
    """Wrappers and where they come from: ``'module.' (DistributedDataParallel)``."""
    return ", ".join(f"'{wrapper}.' ({_ORIGINS[wrapper]})" for wrapper in wrappers)
